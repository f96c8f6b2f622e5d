"""Envoy's rate limit service over Redis: counts requests across several gateways.

It stores nothing itself. Without it, or without Redis, each gateway counts its own requests.
"""
