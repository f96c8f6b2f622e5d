"""The scenarios: what each sends, and its goals. Each prepares its data before the first round."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import load, processes
from bench.cycle import run_cycles
from bench.load import Answers, Plan, Request
from bench.overload import run_overload
from bench.results import Goal
from bench.world import World

CONNECTIONS = 64

_BOOKINGS = "/api/v1/bookings"
_FEW_BOOKINGS = 10_000
_LISTED_EVENTS = 100_000
_ROW_SEATS = 200
_IDLE_SECONDS = 60.0

Run = Callable[[float], Answers]
"""Measures for a number of seconds."""


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes the scenario's data and returns what measures a round.

    Scenarios that are `early` run all their rounds before the others prepare. Those that run `once` have
    one round. Those that have `books` count the bookings that must exist at the end.
    """

    title: str
    prepare: Callable[[World], Run]
    goals: tuple[Goal, ...] = ()
    early: bool = False
    once: bool = False
    books: bool = False


def closed_loop(plan: Plan, connections: int = CONNECTIONS) -> Run:
    return lambda seconds: load.run(plan, connections=connections, seconds=seconds)


def place(world: World, *events: dict[str, Any]) -> list[Request]:
    """Each request books one place: the offers of all events in turn, each by another customer."""
    offers = [(event["eventId"], offer["offerId"]) for event in events for offer in event["offers"]]
    return [
        _place_item(
            world,
            number,
            offers[number % len(offers)][0],
            {"offerId": offers[number % len(offers)][1], "quantity": 1},
        )
        for number in range(max(len(offers), len(world.customers)))
    ]


def _place_item(world: World, number: int, event_id: str, item: dict[str, Any]) -> Request:
    token = world.tokens[number % len(world.tokens)]
    return Request("POST", _BOOKINGS, token, json.dumps({"eventId": event_id, "items": [item]}))


def _place_hot(world: World) -> Run:
    return closed_loop(Plan(world.url, place(world, world.create_event()), expected=201))


def _place_many(world: World) -> Run:
    events = [world.create_event(offers=5) for _ in range(20)]
    return closed_loop(Plan(world.url, place(world, *events), expected=201))


def _place_seats(world: World) -> Run:
    event, seats = world.create_seated_event(rows=world.seats // _ROW_SEATS, seats=_ROW_SEATS)
    random.Random(1).shuffle(seats)
    requests = [
        _place_item(world, number, event["eventId"], {"seatId": seat_id})
        for number, seat_id in enumerate(seats)
    ]
    return closed_loop(Plan(world.url, requests, expected=201, once=True))


def _place_one(world: World) -> Run:
    plan = Plan(world.url, place(world, world.create_event()), expected=201)

    def run(seconds: float) -> Answers:
        echo = load.run(world.echo, connections=1, seconds=seconds / 2)
        answers = load.run(plan, connections=1, seconds=seconds)
        answers.ratios["p50 of echo"] = answers.p50_ms / echo.p50_ms
        return answers

    return run


def _sold_out(world: World) -> Run:
    event = world.create_event(capacity=1)
    body = {
        "eventId": event["eventId"],
        "items": [{"offerId": event["offers"][0]["offerId"], "quantity": 1}],
    }
    world.customers[0].book(body).raise_for_status()
    return closed_loop(Plan(world.url, place(world, event), expected=409))


def _cycle(world: World) -> Run:
    event = world.create_event()
    requests = place(world, event)
    return lambda seconds: asyncio.run(run_cycles(world.url, requests, CONNECTIONS, seconds))


def _get(world: World, path: str) -> Run:
    requests = [Request("GET", path, token) for token in world.tokens]
    return closed_loop(Plan(world.url, requests))


def _get_event(world: World) -> Run:
    return _get(world, f"/api/v1/events/{world.create_event()['eventId']}")


def _get_availability(world: World) -> Run:
    return _get(world, f"/api/v1/events/{world.create_event(offers=5)['eventId']}/availability")


def _get_me(world: World) -> Run:
    return _get(world, "/api/v1/auth/me")


def _list_events(world: World) -> Run:
    world.filler.events(_LISTED_EVENTS, model=world.create_event()["eventId"])
    return _get(world, "/api/v1/events?pageSize=20")


def _get_booking(world: World) -> Run:
    tokens = {reader.user_id: str(reader.token) for reader in world.readers}
    requests = [
        Request("GET", f"{_BOOKINGS}/{booking_id}", tokens[reader_id])
        for reader_id, booking_id in world.filled_bookings(1000)
    ]
    return closed_loop(Plan(world.url, requests))


def _list_bookings(world: World) -> Run:
    path = f"{_BOOKINGS}?pageSize=20"
    requests = [Request("GET", path, str(reader.token)) for reader in world.readers]
    return closed_loop(Plan(world.url, requests))


def _few(run: Callable[[World], Run]) -> Callable[[World], Run]:
    """With few bookings in the table, all of the readers."""

    def prepare(world: World) -> Run:
        world.fill_bookings(_FEW_BOOKINGS)
        return run(world)

    return prepare


def _many(run: Callable[[World], Run]) -> Callable[[World], Run]:
    """The readers have as many bookings as with few, and others have the rest."""

    def prepare(world: World) -> Run:
        world.fill_bookings(_FEW_BOOKINGS)
        world.fill_bookings(world.bookings)
        return run(world)

    return prepare


def _overload(world: World) -> Run:
    event = world.create_event()
    path = f"/api/v1/events/{event['eventId']}"
    reads = [Request("GET", path, token) for token in world.tokens]
    requests = reads + reads + place(world, event)
    return lambda seconds: asyncio.run(run_overload(world.url, requests, seconds))


def _idle(world: World) -> Run:
    def run(seconds: float) -> Answers:
        pids = processes.mesh_pids(world.mesh.home)
        before = processes.cpu_seconds(pids)
        # Shorter rounds are for trying out.
        time.sleep(min(_IDLE_SECONDS, 6 * seconds))
        used = sum(processes.cpu_seconds(pids).values()) - sum(before.values())
        elapsed = min(_IDLE_SECONDS, 6 * seconds)
        return Answers(elapsed, round(elapsed), ratios={"% of a core": 100 * used / elapsed})

    return run


def of_echo(bound: float) -> Goal:
    return Goal("of echo", bound)


SCENARIOS = {
    # First: later, holds expire meanwhile.
    "idle": Scenario(
        "Idle, per second", _idle, (Goal("% of a core", 4, at_least=False),), early=True, once=True
    ),
    "get_booking_few": Scenario(
        f"GetBooking of {_FEW_BOOKINGS:,}", _few(_get_booking), (of_echo(0.6),), early=True
    ),
    "list_bookings_few": Scenario(
        f"ListBookings of {_FEW_BOOKINGS:,}", _few(_list_bookings), (of_echo(0.6),), early=True
    ),
    "place_hot": Scenario(
        "PlaceBooking, one hot offer",
        _place_hot,
        (of_echo(0.55), Goal("of monolith", 10)),
        books=True,
    ),
    "place_many": Scenario(
        "PlaceBooking, 100 offers of 20 events", _place_many, (of_echo(0.5),), books=True
    ),
    "get_event": Scenario("GetEvent", _get_event, (of_echo(0.75),)),
    "get_availability": Scenario("GetAvailability", _get_availability, (of_echo(0.75),)),
    "get_me": Scenario("GetMe", _get_me, (of_echo(0.65),)),
    "sold_out": Scenario("Refused: sold out", _sold_out, (of_echo(0.75),)),
    "get_booking": Scenario(
        "GetBooking of many",
        _many(_get_booking),
        (of_echo(0.6), Goal("of get_booking_few", 1 / 1.3)),
    ),
    "list_bookings": Scenario(
        "ListBookings of many",
        _many(_list_bookings),
        (of_echo(0.6), Goal("of list_bookings_few", 1 / 1.3)),
    ),
    "list_events": Scenario(f"ListEvents, 20 of {_LISTED_EVENTS:,}", _list_events, (of_echo(0.5),)),
    "place_one": Scenario(
        "PlaceBooking, one connection",
        _place_one,
        (Goal("p50 of echo", 3, at_least=False),),
        books=True,
    ),
    "cycle": Scenario("Place, pay, CONFIRMED", _cycle, (of_echo(0.15),), books=True),
    "place_seats": Scenario(
        "PlaceBooking, random seats until sold out",
        _place_seats,
        (of_echo(0.4),),
        once=True,
        books=True,
    ),
    "overload": Scenario(
        "Overload: peak, 2 ×, 5 ×",
        _overload,
        (Goal("at 2 × peak", 0.9), Goal("at 5 × peak", 0.8)),
    ),
}
