"""Payments and refunds through payment providers."""
