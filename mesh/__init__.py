"""What all services share: start-up, authentication, storage, event streams.

Code that two services would otherwise both contain belongs here. The rules of one domain
(prices, seats, refunds) belong to that domain's service.
"""
