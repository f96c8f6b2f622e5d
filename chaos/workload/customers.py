"""All customers of a run: their names, shows, behaviour and arrival times."""

import asyncio
import random
from collections.abc import Sequence

from chaos.client import Api
from chaos.workload import catalogue
from chaos.workload.catalogue import Show
from chaos.workload.customer import MIX, Customer, Person
from chaos.workload.journal import Journal

ARRIVAL_SECONDS = 3.0
"""Without kills, all customers arrive within this time."""

_CINEMA_SHARE = 0.35


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
    first_names, last_names = catalogue.people()
    async with asyncio.TaskGroup() as group:
        for number in range(journal.customers):
            choices = random.Random(f"{seed}:{number}")
            first, last = choices.choice(first_names), choices.choice(last_names)
            address = f"{first}.{last}.{number}.{run}".lower().replace("'", "")
            customer = Customer(
                Person(f"{first} {last}", f"{address}@example.com"),
                show=cinema if choices.random() < _CINEMA_SHARE else stadium,
                behaviour=choices.choices(list(MIX), list(MIX.values()))[0],
                api=api,
                journal=journal,
                randomness=choices,
            )
            group.create_task(customer.run(choices.uniform(0, arrival_seconds)))
