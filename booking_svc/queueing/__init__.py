"""Queues of on-sales: the waiting room before a sale, and the waiting list after it sold out.

Bookings know nothing of them: what placing needs, `__main__` passes to it.
"""
