"""Generates the OpenAPI 3.1 document from the compiled contract, and the page that shows it.

Everything comes from the protos' bindings, comments, buf.validate rules and policies.
"""
