"""The ledger: what exists, what is held, what is sold, and why. Nothing about prices or people."""
