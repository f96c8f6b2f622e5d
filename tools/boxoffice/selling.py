"""Events, bookings and payments of the command line."""

import argparse
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from tools.rest import Api, RefusedError

_CONFIRM_SECONDS = 60.0
_UNTIL_START = timedelta(days=30)


def offer(text: str) -> dict[str, Any]:
    """An offer of CreateEvent from `NAME,PRICE,CURRENCY,PLACES`; the price in minor units."""
    try:
        name, price, currency, places = (part.strip() for part in text.split(","))
        money = {"amountMinor": str(int(price)), "currencyCode": currency}
        return {"name": name, "price": money, "capacity": int(places)}
    except ValueError:
        raise argparse.ArgumentTypeError(
            "must be NAME,PRICE,CURRENCY,PLACES with the price in minor units, e.g."
            " Floor,150000,INR,500"
        ) from None


def create_event(api: Api, name: str, offers: list[dict[str, Any]]) -> dict[str, Any]:
    """An event in 30 days that is on sale now."""
    now = datetime.now(UTC).replace(microsecond=0)
    event = {
        "name": name,
        "timeZone": "Asia/Kolkata",
        "startTime": (now + _UNTIL_START).isoformat(),
        "saleStartTime": now.isoformat(),
        "offers": offers,
    }
    return api.create("/api/v1/events", event, key=str(uuid.uuid4()))


def book(
    api: Api, event_id: str, offer_name: str | None, quantity: int, provider: str
) -> dict[str, Any]:
    """Holds places of an offer, by default of the first, and opens the payment page."""
    offers = api.get(f"/api/v1/events/{event_id}")["offers"]
    named = [candidate for candidate in offers if offer_name in (None, candidate["name"])]
    if not named:
        names = ", ".join(candidate["name"] for candidate in offers)
        raise RefusedError(f"--offer must be one of: {names}")
    body = {
        "eventId": event_id,
        "items": [{"offerId": named[0]["offerId"], "quantity": quantity}],
        "checkout": {"provider": provider},
    }
    return api.create("/api/v1/bookings", body, key=str(uuid.uuid4()))


def pay(api: Api, booking_id: str) -> dict[str, Any]:
    """Pays a booking in the sandbox. Returns it when it is confirmed."""
    path = f"/api/v1/bookings/{booking_id}"
    payment = api.get(path).get("payment")
    if payment is None:
        raise RefusedError("the booking has no payment")
    api.post(f"/sandbox/pay/{payment['paymentId']}", {"outcome": "SUCCEEDED"})
    end = time.monotonic() + _CONFIRM_SECONDS
    while (booking := api.get(path))["status"] == "PENDING_PAYMENT" and time.monotonic() < end:
        time.sleep(0.2)
    return booking
