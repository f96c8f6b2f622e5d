"""What every service shares: how it starts, whom it believes, how it stores and streams.

Here belongs what two services would otherwise write twice. A rule of one domain
(prices, seats, refunds) belongs to that domain's service.
"""
