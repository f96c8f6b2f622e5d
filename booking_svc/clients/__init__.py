"""Clients of the other services. ports.py declares what booking_svc needs from them."""
