"""Webhooks to outside systems, as Standard Webhooks has them (https://www.standardwebhooks.com).

endpoints.py knows who is told what, follower.py turns what happens to bookings into
messages, deliveries.py is their queue and log, courier.py posts them, signature.py signs
them, destinations.py refuses addresses that are not public.
"""
