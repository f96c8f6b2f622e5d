"""Reads the events in data/ and puts them on sale, as staff.

The files contain messages of the API; data/README.md describes what is filled in.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from chaos.client import Api, Json

STADIUM = "stadium"
CINEMA = "cinema"

_DATA = Path(__file__).parent / "data"
_TIMES = ("startTime", "endTime", "saleStartTime", "saleEndTime")
_DURATION = re.compile(r"(-)?P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")
_ADMIN_PASSWORD = "Stage-Door-1887"


@dataclass(frozen=True, slots=True)
class Seat:
    """A seat on the map. `distance` is its distance from the best seat, in seats."""

    seat_id: str
    row: str
    number: int
    seat_type: str
    distance: float


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer; `seat_type` is None for places without seats."""

    offer_id: str
    name: str
    seat_type: str | None
    max_per_booking: int
    per_customer_limit: int


@dataclass(frozen=True, slots=True)
class Show:
    """An event on sale. `demand` has a weight for each of the offers."""

    event_id: str
    name: str
    venue_name: str
    total_capacity: int
    offers: tuple[Offer, ...]
    demand: tuple[int, ...]
    seats: tuple[Seat, ...]


async def sign_in_admin(api: Api, secret: str) -> str:
    """Creates an admin with the registration secret. Returns the access token."""
    email = f"box.office.{uuid4().hex[:12]}@example.com"
    await api.call(
        "POST",
        "/api/v1/auth/admin/register",
        body={
            "email": email,
            "password": _ADMIN_PASSWORD,
            "fullName": "Demo Box Office",
            "adminSecret": secret,
        },
    )
    answer = await api.call(
        "POST", "/api/v1/auth/login", body={"email": email, "password": _ADMIN_PASSWORD}
    )
    return str(answer["accessToken"])


async def put_on_sale(
    api: Api, token: str, name: str, changes: Json | None = None, *, price_percent: int = 100
) -> Show:
    """Creates the venue, the auditorium if there is one, and the event of a data file.

    `changes` replace fields of the event; `price_percent` changes the prices of its offers.
    """
    content = load(name, datetime.now(UTC))
    content["event"] |= changes or {}
    for offer in content["event"]["offers"]:
        amount = int(offer["price"]["amountMinor"]) * price_percent // 100
        offer["price"]["amountMinor"] = str(amount)
    venue = await api.call("POST", "/api/v1/venues", body=content["venue"], token=token)
    auditorium: Json = {}
    if "auditorium" in content:
        path = f"/api/v1/venues/{venue['venueId']}/auditoriums"
        auditorium = await api.call("POST", path, body=content["auditorium"], token=token)
        content["event"]["auditoriumId"] = auditorium["auditoriumId"]
    else:
        content["event"]["venueName"] = venue["name"]
        content["event"]["timeZone"] = venue["timeZone"]
    event = await api.call(
        "POST", "/api/v1/events", body=content["event"], token=token, key=uuid4().hex
    )
    return _show(event, auditorium, content["demand"])


def load(name: str, now: datetime) -> Json:
    """A data file, its durations converted to times from `now`."""
    content: Json = json.loads((_DATA / f"{name}.json").read_text())
    event = content["event"]
    for field in _TIMES:
        if field in event:
            moment = now + duration(event[field])
            event[field] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return content


def duration(text: str) -> timedelta:
    """An ISO 8601 duration in days, hours, minutes and seconds, e.g. `P10DT6H20M` or `-PT1M`."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()[1:]):
        raise ValueError(f"{text!r} is not a duration such as P30D or -PT1M")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return -length if match[1] else length


def people() -> tuple[list[str], list[str]]:
    """First and last names."""
    content = json.loads((_DATA / "people.json").read_text())
    return content["first"], content["last"]


def _show(event: Json, auditorium: Json, demand: Mapping[str, int]) -> Show:
    offers = tuple(
        Offer(
            offer_id=offer["offerId"],
            name=offer["name"],
            seat_type=offer.get("seatType"),
            max_per_booking=offer["maxPerBooking"],
            per_customer_limit=offer["perCustomerLimit"],
        )
        for offer in event["offers"]
    )
    return Show(
        event_id=event["eventId"],
        name=event["name"],
        venue_name=event.get("venueName", ""),
        total_capacity=event["totalCapacity"],
        offers=offers,
        demand=tuple(demand[offer.name] for offer in offers),
        seats=_seats(auditorium.get("rows", [])),
    )


def _seats(rows: list[Json]) -> tuple[Seat, ...]:
    """The seats of the map. The best ones are in the middle of the row at two thirds of the depth."""
    best_row = len(rows) * 2 // 3 - 1
    return tuple(
        Seat(
            seat_id=seat["seatId"],
            row=row["label"],
            number=int(seat["number"]),
            seat_type=seat["seatType"],
            distance=abs(index - best_row) * 1.5 + abs(place - (len(row["seats"]) - 1) / 2),
        )
        for index, row in enumerate(rows)
        for place, seat in enumerate(row["seats"])
    )
