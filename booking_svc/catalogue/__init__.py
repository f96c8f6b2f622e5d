"""What can be bought: venues, events, their offers and a projection of their stock.

Knows nothing of bookings.
"""
