"""`make demo`: sells a stadium and a cinema to hundreds of concurrent customers, then audits the sale.

A client of the REST API. Customers, faults and the audit are those of chaos/.
"""
