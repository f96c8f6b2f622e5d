"""How the sandbox signs its webhooks: in Stripe's form, under a header of its own."""

from payment_svc.providers.signatures import TOLERANCE, sign, verify

__all__ = ["HEADER", "TOLERANCE", "sign", "verify"]

HEADER = "x-sandbox-signature"
