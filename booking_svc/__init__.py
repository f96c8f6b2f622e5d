"""Catalogue and bookings: what can be bought, and the life of each purchase."""
