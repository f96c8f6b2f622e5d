"""Mails to customers about their bookings. The queue and sending are in mesh/mail.

consumer.py reads the events, content.py chooses and fills the mail, formatting.py formats times
and amounts, contacts.py stores addresses.
"""
