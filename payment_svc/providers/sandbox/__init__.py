"""The sandbox provider: a payment provider inside payment_svc, without a network.

The provider's side (bank, ledger, delivery, pages) reports to payment_svc by signed webhooks
only. provider.py is payment_svc's adapter to it.
"""

NAME = "sandbox"
