"""Counts requests for several gateways together: Envoy's rate limit service over Redis.

It keeps nothing of its own. Without it, or without Redis, each gateway counts alone.
"""
