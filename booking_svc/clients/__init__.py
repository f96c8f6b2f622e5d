"""The other services, as booking_svc calls them. ports.py states what it needs of them."""
