"""What must hold: the audit of stock, bookings and money, and the history of calls."""
