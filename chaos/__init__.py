"""`make chaos`: sells events while processes, connections, providers and clients fail, and audits.

Clients of the public API. Of the other code it imports only what starts a mesh.
"""
