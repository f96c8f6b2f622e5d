"""Accounts, events on sale and a paid booking, to look around in a new mesh."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tools.boxoffice import selling
from tools.rest import Api, RefusedError

ADMIN = "sample-admin@example.com"
CUSTOMER = "sample-customer@example.com"
PASSWORD = "Curtain-Up-2026!"
"""Of both accounts. They are for development: anyone can read this."""

_CONCERT = "Monsoon Nights (sample)"
_FILM = "The Last Reel (sample)"
_GOODS = "Poster, first edition (sample)"


def create(api: Api, admin_secret: str) -> str:
    """Creates what does not exist yet; a repeated call changes nothing. Returns a summary."""
    _sign_in_as_admin(api, admin_secret)
    events = {event["name"]: event for event in api.all("/api/v1/events", "events")}
    for event in (_concert(), _film(api) if _FILM not in events else {}, _goods()):
        if event and event["name"] not in events:
            name = event["name"]
            events[name] = api.create("/api/v1/events", event, key=f"sample {name}")
    _register(api, CUSTOMER, "Mira Rao")
    api.sign_in(CUSTOMER, PASSWORD)
    bookings = api.get("/api/v1/bookings")["bookings"]
    if not bookings:
        held = selling.book(api, events[_CONCERT]["eventId"], "Floor", 2, "sandbox")
        bookings = [selling.pay(api, held["bookingId"])]
    lines = [
        f"admin     {ADMIN}  {PASSWORD}",
        f"customer  {CUSTOMER}  {PASSWORD}",
        *(f"event     {events[name]['eventId']}  {name}" for name in (_CONCERT, _FILM, _GOODS)),
        *(f"booking   {booking['bookingId']}  {booking['status']}" for booking in bookings[:1]),
    ]
    return "\n".join(lines)


def _sign_in_as_admin(api: Api, admin_secret: str) -> None:
    try:
        api.sign_in(ADMIN, PASSWORD)
    except RefusedError:
        if not admin_secret:
            raise RefusedError(
                "sample data needs an admin: start the mesh, and this command, with"
                " BOXOFFICE_ADMIN_REGISTRATION_SECRET=<32 characters or more>"
            ) from None
        account = {"email": ADMIN, "password": PASSWORD, "fullName": "Ada Admin"}
        api.post("/api/v1/auth/admin/register", {**account, "adminSecret": admin_secret})
        api.sign_in(ADMIN, PASSWORD)


def _register(api: Api, email: str, name: str) -> None:
    try:
        account = {"email": email, "password": PASSWORD, "fullName": name}
        api.post("/api/v1/auth/register", account)
    except RefusedError as refusal:
        if refusal.reason != "EMAIL_ALREADY_REGISTERED":
            raise


def _concert() -> dict[str, Any]:
    return _event(
        _CONCERT,
        days=60,
        offers=[selling.offer("Floor,150000,INR,500"), selling.offer("Balcony,90000,INR,200")],
    )


def _film(api: Api) -> dict[str, Any]:
    """A showtime with seats, in an auditorium of its own."""
    venue = {"name": "Regal Cinema", "timeZone": "Asia/Kolkata", "address": "Colaba, Mumbai"}
    venue_id = api.create("/api/v1/venues", venue, key="sample venue")["venueId"]
    rows = [
        {"label": label, "seats": [{"number": str(n), "seatType": kind} for n in range(1, 11)]}
        for label, kind in (("A", "REGULAR"), ("B", "REGULAR"), ("C", "PREMIUM"))
    ]
    auditorium = api.create(
        f"/api/v1/venues/{venue_id}/auditoriums",
        {"name": "Screen 1", "rows": rows},
        key="sample auditorium",
    )
    production = api.create(
        "/api/v1/productions",
        {"title": _FILM, "durationMinutes": 118, "language": "en"},
        key="sample production",
    )
    prices = {"REGULAR": "30000", "PREMIUM": "45000"}
    return _event(
        _FILM,
        days=7,
        auditoriumId=auditorium["auditoriumId"],
        productionId=production["productionId"],
        offers=[
            {
                "name": kind.capitalize(),
                "seatType": kind,
                "price": {"amountMinor": price, "currencyCode": "INR"},
            }
            for kind, price in prices.items()
        ],
    )


def _goods() -> dict[str, Any]:
    """A sale without a date."""
    event = _event(_GOODS, days=1, offers=[selling.offer("Poster,50000,INR,1000")])
    return {name: value for name, value in event.items() if name not in ("startTime", "endTime")}


def _event(name: str, *, days: int, **fields: Any) -> dict[str, Any]:
    """An event that begins in `days` at 20:00 in India and is on sale now."""
    now = datetime.now(UTC).replace(microsecond=0)
    start = (now + timedelta(days=days)).replace(hour=14, minute=30, second=0)
    return {
        "name": name,
        "timeZone": "Asia/Kolkata",
        "startTime": start.isoformat(),
        "endTime": (start + timedelta(hours=2)).isoformat(),
        "saleStartTime": (now - timedelta(minutes=1)).isoformat(),
        **fields,
    }
