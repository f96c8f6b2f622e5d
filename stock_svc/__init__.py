"""The stock ledger: capacity, held and sold places of events, and why they changed; no prices."""
