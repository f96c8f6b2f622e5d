"""The scenarios: what each sends, and its goals. Each prepares its data before the first round."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import load
from bench.load import Answers, Plan, Request
from bench.results import Goal
from bench.world import World

CONNECTIONS = 64

Run = Callable[[float], Answers]
"""Measures for a number of seconds."""


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes the scenario's data and returns what measures a round."""

    title: str
    prepare: Callable[[World], Run]
    goals: tuple[Goal, ...] = ()


def closed_loop(plan: Plan, connections: int = CONNECTIONS) -> Run:
    return lambda seconds: load.run(plan, connections=connections, seconds=seconds)


def _place(world: World, *events: dict[str, Any]) -> Plan:
    """Each request books one place: the offers of all events in turn, each by another customer."""
    offers = [(event["eventId"], offer["offerId"]) for event in events for offer in event["offers"]]
    requests = []
    for number in range(max(len(offers), len(world.customers))):
        event_id, offer_id = offers[number % len(offers)]
        body = {"eventId": event_id, "items": [{"offerId": offer_id, "quantity": 1}]}
        token = world.tokens[number % len(world.customers)]
        requests.append(Request("POST", "/api/v1/bookings", token, json.dumps(body)))
    return Plan(world.url, requests, expected=201)


def _place_hot(world: World) -> Run:
    return closed_loop(_place(world, world.create_event()))


def _get_event(world: World) -> Run:
    event = world.create_event()
    requests = [
        Request("GET", f"/api/v1/events/{event['eventId']}", token) for token in world.tokens
    ]
    return closed_loop(Plan(world.url, requests))


def _get_me(world: World) -> Run:
    requests = [Request("GET", "/api/v1/auth/me", token) for token in world.tokens]
    return closed_loop(Plan(world.url, requests))


def of_echo(bound: float) -> Goal:
    return Goal("of echo", bound)


SCENARIOS = {
    "place_hot": Scenario(
        "PlaceBooking, one hot offer", _place_hot, (of_echo(0.55), Goal("of monolith", 10))
    ),
    "get_event": Scenario("GetEvent", _get_event, (of_echo(0.75),)),
    "get_me": Scenario("GetMe", _get_me, (of_echo(0.65),)),
}
