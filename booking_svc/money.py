"""Amounts of money: minor units of one currency, never a float."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Money:
    currency_code: str
    amount_minor: int
