"""Webhooks to outside systems, as Standard Webhooks has them (https://www.standardwebhooks.com).

endpoints.py has the subscriptions, consumer.py turns booking events into messages,
deliveries.py has their queue and log, delivery_worker.py posts them.
"""
