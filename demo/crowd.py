"""All customers of a run: who they are, what they want, and when they come."""

import asyncio
import random
from collections.abc import Sequence

from demo import catalogue
from demo.catalogue import Show
from demo.client import Api
from demo.customer import MIX, Customer, Person
from demo.journal import Journal

RUSH_SECONDS = 3.0
"""Without kills, everybody comes within this time."""

_AT_THE_CINEMA = 0.35


async def sell(
    shows: Sequence[Show],
    *,
    api: Api,
    journal: Journal,
    seed: int,
    run: str,
    arrival_seconds: float = RUSH_SECONDS,
) -> None:
    """Lets `journal.customers` customers come within `arrival_seconds`; returns when all are gone.

    The same seed makes the same customers; `run` keeps their e-mail addresses apart.
    """
    stadium, cinema = shows
    first_names, last_names = catalogue.people()
    async with asyncio.TaskGroup() as group:
        for number in range(journal.customers):
            choices = random.Random(f"{seed}:{number}")
            first, last = choices.choice(first_names), choices.choice(last_names)
            address = f"{first}.{last}.{number}.{run}".lower().replace("'", "")
            customer = Customer(
                Person(f"{first} {last}", f"{address}@example.com"),
                show=cinema if choices.random() < _AT_THE_CINEMA else stadium,
                behaviour=choices.choices(list(MIX), list(MIX.values()))[0],
                api=api,
                journal=journal,
                randomness=choices,
            )
            group.create_task(customer.run(choices.uniform(0, arrival_seconds)))
