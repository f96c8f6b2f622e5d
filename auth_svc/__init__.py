"""Accounts, sessions and tokens. Who may do what with a booking is not decided here."""
