"""`make demo`: sells a stadium and a cinema to hundreds of concurrent customers, then audits the sale.

`--on-sale` opens a waiting room for thousands of visitors and bots, and writes the on-sale report.

A client of the REST API. Customers, faults and the audit are those of chaos/.
"""
