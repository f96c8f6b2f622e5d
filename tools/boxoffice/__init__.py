"""The command line for trying a mesh: accounts, events, bookings, API keys and sample data.

REST only, through the gateway, as any other client.
"""
