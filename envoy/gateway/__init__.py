"""Generates Envoy's configuration from the contract and the settings: `python -m gateway --help`.

Routes, token rules, limits and timeouts come from the RPCs' policies, not from code here.
"""
