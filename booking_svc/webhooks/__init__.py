"""Webhooks to external systems, after Standard Webhooks (https://www.standardwebhooks.com).

consumer.py turns booking events into messages for endpoints.py's subscriptions; deliveries.py is
their queue and log, delivery_worker.py posts them, url_policy.py rejects non-public addresses.
"""
