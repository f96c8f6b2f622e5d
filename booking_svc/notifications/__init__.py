"""Mails to customers about their bookings.

follower.py follows what happens to bookings, letters.py says which mail that means and
what stands in it, wording.py puts times and amounts as the customer reads them,
contacts.py knows the addresses. Queue and sending are mesh.mail's.
"""
