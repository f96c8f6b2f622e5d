"""The gateway: Envoy's configuration, generated from the contract and the settings.

Routes, token rules, limits and timeouts come from the policies of the RPCs; nothing
here names a single RPC. Run `python -m gateway --help`.
"""
