"""The sandbox provider: what Stripe or Razorpay would run, offline, in the same process.

Its side (bank, ledger, delivery, pages) knows payment_svc by signed webhooks only;
provider.py is the adapter through which payment_svc knows it.
"""

NAME = "sandbox"
