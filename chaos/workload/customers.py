"""All customers of a run: their names, shows, behaviour and arrival times."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from chaos.client import Api
from chaos.workload import catalogue
from chaos.workload.catalogue import Show
from chaos.workload.customer import MIX, Behaviour, Customer, Person
from chaos.workload.journal import Journal

ARRIVAL_SECONDS = 3.0
"""Without kills, all customers arrive within this time."""

_CINEMA_SHARE = 0.35
_FULL_REFUND = {"tiered": {"tiers": [{"beforeStart": "0s", "percent": 100}]}}
_DEARER_PERCENT = 120
# How many seconds of arrivals are active at once. More would measure overload, not faults.
_MOST_ACTIVE_SECONDS = 20.0

CHAOS_MIX: dict[Behaviour, int] = {
    Behaviour.PAYS: 20,
    Behaviour.DOUBLE_CLICKS: 10,
    Behaviour.BUYS_AGAIN: 4,
    Behaviour.DECLINES: 4,
    Behaviour.TRIES_AGAIN: 10,
    Behaviour.CANCELS: 6,
    Behaviour.WALKS_AWAY: 8,
    Behaviour.PAYS_LATE: 6,
    Behaviour.CANCELS_PAID: 8,
    Behaviour.GIVES_BACK: 8,
    Behaviour.MOVES: 10,
    Behaviour.IS_COMPENSATED: 6,
}
"""The percentage of customers with each behaviour, while everything fails."""


@dataclass(frozen=True, slots=True)
class Shop:
    """What `put_shop_on_sale` sells: two dates of one production, the second dearer, and a cinema."""

    dates: tuple[Show, Show]
    cinema: Show

    @property
    def shows(self) -> tuple[Show, ...]:
        return (*self.dates, self.cinema)


async def put_shop_on_sale(api: Api, token: str) -> Shop:
    """Creates the events. Cancelling refunds everything, so that the audit can be exact."""
    production = await api.call(
        "POST", "/api/v1/productions", body={"title": "Monsoon Nights"}, token=token
    )
    changes = {"cancellationPolicy": _FULL_REFUND}
    tour = {**changes, "productionId": production["productionId"]}
    return Shop(
        dates=(
            await catalogue.put_on_sale(api, token, catalogue.STADIUM, tour),
            await catalogue.put_on_sale(
                api, token, catalogue.STADIUM, tour, price_percent=_DEARER_PERCENT
            ),
        ),
        cinema=await catalogue.put_on_sale(api, token, catalogue.CINEMA, changes),
    )


async def keep_coming(
    shop: Shop,
    *,
    api: Api,
    journal: Journal,
    staff_token: str,
    seed: int,
    run: str,
    per_second: float,
    closing: asyncio.Event,
) -> None:
    """Customers arrive at random moments until `closing` is set. Returns when all have left."""
    arrivals = random.Random(f"{seed}:arrivals")
    async with asyncio.TaskGroup() as group:
        number = 0
        while not closing.is_set():
            await asyncio.sleep(arrivals.expovariate(per_second))
            if journal.active >= per_second * _MOST_ACTIVE_SECONDS:
                continue
            choices = random.Random(f"{seed}:{number}")
            first, second = shop.dates
            show, other = choices.choice(((first, second), (second, first), (shop.cinema, None)))
            customer = Customer(
                _person(choices, f"{number}.{run}"),
                show=show,
                behaviour=choices.choices(list(CHAOS_MIX), list(CHAOS_MIX.values()))[0],
                api=api,
                journal=journal,
                randomness=choices,
                other_date=other,
                staff_token=staff_token,
            )
            journal.customers += 1
            group.create_task(customer.run(0))
            number += 1


async def sell(
    shows: Sequence[Show],
    *,
    api: Api,
    journal: Journal,
    seed: int,
    run: str,
    arrival_seconds: float = ARRIVAL_SECONDS,
) -> None:
    """Runs `journal.customers` customers, who arrive within `arrival_seconds`, to their end.

    The same seed creates the same customers; `run` makes their e-mail addresses unique.
    """
    stadium, cinema = shows
    async with asyncio.TaskGroup() as group:
        for number in range(journal.customers):
            choices = random.Random(f"{seed}:{number}")
            customer = Customer(
                _person(choices, f"{number}.{run}"),
                show=cinema if choices.random() < _CINEMA_SHARE else stadium,
                behaviour=choices.choices(list(MIX), list(MIX.values()))[0],
                api=api,
                journal=journal,
                randomness=choices,
            )
            group.create_task(customer.run(choices.uniform(0, arrival_seconds)))


def _person(choices: random.Random, unique: str) -> Person:
    first_names, last_names = _people()
    first, last = choices.choice(first_names), choices.choice(last_names)
    address = f"{first}.{last}.{unique}".lower().replace("'", "")
    return Person(f"{first} {last}", f"{address}@example.com")


@cache
def _people() -> tuple[list[str], list[str]]:
    return catalogue.people()
