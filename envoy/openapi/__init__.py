"""OpenAPI 3.1, generated from the compiled contract, and the page that shows it.

Paths, schemas, constraints and errors come from the protos: their bindings, comments,
buf.validate rules and policies. Nothing here names a single RPC.
"""
