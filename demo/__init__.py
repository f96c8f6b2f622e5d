"""`make demo`: sells a stadium and a cinema to hundreds of concurrent customers, then audits the sale.

A client of the REST API. Of the other code it imports only what starts a mesh.
"""
