"""The state of the mesh after the sale, read through the public API, as plain data for audit.py.

The ledger is that of the sandbox provider: what was actually charged and refunded.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chaos.client import Api, Json, RefusedError

OPEN = frozenset({"HELD", "PENDING_PAYMENT"})
SOLD = frozenset({"CONFIRMED", "COMPLETED"})

COMPENSATION = "compensation"
"""The reason of partial refunds by staff, after which a booking stays confirmed."""

_PAGE = "100"
_LEDGER_PAGE = "1000"


@dataclass
class Order:
    """One idempotency key of a customer, and the answers that the customer received for it.

    `booking_ids` has one entry per 201. `is_uncertain`: an attempt got no answer and may have made
    a booking. `paid` is the payment that the payment page reported as successful. `was_confirmed`:
    the customer saw the booking CONFIRMED, and has not cancelled it since. `is_second_try`: the customer has paid in time after a
    declined attempt.
    """

    key: str
    customer_id: str
    booking_ids: list[str] = field(default_factory=list)
    is_uncertain: bool = False
    paid: str = ""
    was_confirmed: bool = False
    is_second_try: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    offer_id: str
    quantity: int
    seat_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A booking as staff see it. Texts are empty without a payment or refund."""

    booking_id: str
    event_id: str
    customer_id: str
    status: str
    items: tuple[Item, ...]
    total_minor: int
    hold_expire_time: datetime
    payment_id: str = ""
    refund_status: str = ""
    compensated_minor: int = 0

    @property
    def quantity(self) -> int:
        return sum(item.quantity for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool's counters, from the stock audit."""

    pool_id: str
    capacity: int
    held: int
    sold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    offer_id: str
    name: str
    pool_id: str
    per_customer_limit: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event's stock: counters, availability, seat states and differences of the stock audit."""

    event_id: str
    name: str
    pools: tuple[Pool, ...]
    offers: tuple[Offer, ...]
    seats: Mapping[str, str]
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A movement of money in the provider's ledger; `kind` is CAPTURE or REFUND."""

    entry_id: int
    payment_id: str
    kind: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence as of `time`. `payers` maps payments to the bookings that they pay."""

    time: datetime
    events: tuple[Event, ...]
    bookings: tuple[Booking, ...]
    ledger: tuple[Entry, ...]
    payers: Mapping[str, str]


class Investigator:
    """Reads the evidence as staff. Start it before the sale: it ignores older ledger entries."""

    def __init__(self, api: Api, token: str, event_ids: Iterable[str]) -> None:
        self._api = api
        self._token = token
        self._event_ids = tuple(event_ids)
        self._first_entry = 0
        self._others: dict[str, str] = {}

    async def start(self) -> None:
        """Records the current end of the ledger."""
        entries = [entry async for entry in self._ledger()]
        self._first_entry = max((entry.entry_id for entry in entries), default=0) + 1

    async def gather(self) -> Evidence:
        """Reads everything. Raises RefusedError or UnansweredError."""
        events = [await self._event(event_id) for event_id in self._event_ids]
        bookings = [
            _booking(booking)
            for event_id in self._event_ids
            async for booking in self._pages(
                f"/api/v1/events/{event_id}/bookings", "bookings", page_size=_PAGE
            )
        ]
        ledger = [entry async for entry in self._ledger() if entry.entry_id >= self._first_entry]
        payers = {
            booking.payment_id: booking.booking_id for booking in bookings if booking.payment_id
        }
        for payment_id in {entry.payment_id for entry in ledger} - payers.keys():
            payers[payment_id] = await self._payer(payment_id)
        booking_ids = {booking.booking_id for booking in bookings}
        return Evidence(
            time=datetime.now(UTC),
            events=tuple(events),
            bookings=tuple(bookings),
            # Includes payments of unknown bookings, which are findings.
            ledger=tuple(
                entry
                for entry in ledger
                if not payers[entry.payment_id] or payers[entry.payment_id] in booking_ids
            ),
            payers=payers,
        )

    async def _event(self, event_id: str) -> Event:
        path = f"/api/v1/events/{event_id}"
        event = await self._get(path)
        available = await self._get(f"{path}/availability")
        stock = await self._get(f"{path}/stock/audit")
        places = {offer["offerId"]: int(offer["available"]) for offer in available["offers"]}
        return Event(
            event_id=event_id,
            name=event["name"],
            pools=tuple(_pool(pool) for pool in stock["pools"]),
            offers=tuple(
                Offer(
                    offer_id=offer["offerId"],
                    name=offer["name"],
                    pool_id=offer["poolId"],
                    per_customer_limit=offer["perCustomerLimit"],
                    available=places[offer["offerId"]],
                )
                for offer in event["offers"]
            ),
            seats={seat["seatId"]: seat["state"] for seat in available.get("seats", ())},
            differences=tuple(stock.get("differences", ())),
        )

    async def _ledger(self) -> AsyncIterator[Entry]:
        async for entry in self._pages("/sandbox/ledger", "entries", page_size=_LEDGER_PAGE):
            yield Entry(
                entry_id=int(entry["entryId"]),
                payment_id=entry["paymentId"],
                kind=entry["kind"],
                amount_minor=int(entry["amount"]["amountMinor"]),
            )

    async def _payer(self, payment_id: str) -> str:
        """The booking of a payment that no booking refers to (any more); "" when there is none."""
        if payment_id not in self._others:
            try:
                payment = await self._get(f"/api/v1/payments/{payment_id}")
            except RefusedError:
                return ""
            self._others[payment_id] = payment["bookingId"]
        return self._others[payment_id]

    async def _pages(self, path: str, name: str, *, page_size: str) -> AsyncIterator[Json]:
        page_token = ""
        while True:
            params = {"page_size": page_size}
            if page_token:
                params["page_token"] = page_token
            page = await self._get(path, params)
            for entry in page.get(name, ()):
                yield entry
            page_token = page.get("nextPageToken", "")
            if not page_token:
                return

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        return await self._api.call("GET", path, token=self._token, params=params)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time of the API."""
    return datetime.fromisoformat(text)


def _pool(pool: Json) -> Pool:
    return Pool(
        pool_id=pool["poolId"],
        capacity=int(pool["capacity"]),
        held=int(pool["held"]),
        sold=int(pool["sold"]),
    )


def _booking(booking: Json) -> Booking:
    return Booking(
        booking_id=booking["bookingId"],
        event_id=booking["eventId"],
        customer_id=booking["customerId"],
        status=booking["status"],
        items=tuple(
            Item(
                offer_id=item["offerId"],
                quantity=int(item["quantity"]),
                seat_id=item.get("seatId", ""),
            )
            for item in booking["items"]
        ),
        total_minor=int(booking["total"]["amountMinor"]),
        hold_expire_time=parse_time(booking["holdExpireTime"]),
        payment_id=(booking.get("payment") or {}).get("paymentId", ""),
        refund_status=(booking.get("refund") or {}).get("status", ""),
        compensated_minor=sum(
            int(refund["amount"]["amountMinor"])
            for refund in booking.get("refunds", ())
            if refund["reason"] == COMPENSATION and refund["status"] == "PROCESSED"
        ),
    )
