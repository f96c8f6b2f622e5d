"""`make demo`: sells a stadium and a cinema to hundreds of customers at once, then audits it.

It is a client like any other: it knows the REST API and, of our code, only how to
start a mesh.
"""
