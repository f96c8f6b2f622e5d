"""Bookings: placing, payment, modification, cancellation and the saga steps behind them."""
