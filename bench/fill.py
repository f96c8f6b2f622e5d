"""Fills the catalogue and the bookings by SQL, as the superuser, who has no time limits."""

from collections.abc import Sequence
from typing import Any

import psycopg

_EVENTS = """
WITH filled AS (
    INSERT INTO events (event_id, name, description, time_zone, start_time, sale_start_time, status,
        current_status, is_sold_out, search, currency_code, cancellation_policy, total_capacity,
        revision, create_time, update_time)
    SELECT uuidv7(), 'Concert ' || n, '', time_zone, now() + n * interval '7 minutes',
        sale_start_time, 'UPCOMING', 'ON_SALE', false, '', currency_code, cancellation_policy, 100,
        1, now(), now()
    FROM events, generate_series(1, %(count)s) AS n WHERE event_id = %(model)s
    RETURNING event_id
), sold AS (
    INSERT INTO offers (event_id, offer_id, offer_index, name, price_minor, pool_id, capacity,
        per_customer_limit, max_per_booking)
    SELECT event_id, uuidv7(), 0, 'Floor', 150000, uuidv7(), 100, 10, 10 FROM filled
    RETURNING event_id, pool_id
)
INSERT INTO stock_levels (event_id, pool_id, capacity, available, version)
SELECT event_id, pool_id, 100, 50, 1 FROM sold
"""

# Confirmed at no cost, each with one item and two entries of its timeline.
_BOOKINGS = """
WITH filled AS (
    INSERT INTO bookings (booking_id, event_id, customer_id, status, currency_code, total_minor,
        hold_expire_time, reservation_id, cancellation_policy, create_time, update_time,
        confirm_time)
    SELECT id, %(event)s, (%(customers)s::uuid[])[1 + n %% cardinality(%(customers)s::uuid[])],
        'CONFIRMED', 'INR', 0, now(), id, policy, now(), now(), now()
    FROM (
        SELECT uuidv7() AS id, n, cancellation_policy AS policy
        FROM events, generate_series(1, %(count)s) AS n WHERE event_id = %(event)s
    )
    RETURNING booking_id
), items AS (
    INSERT INTO booking_items (booking_id, item_index, offer_id, quantity, unit_price_minor)
    SELECT booking_id, 0, %(offer)s, 1, 0 FROM filled
)
INSERT INTO booking_timeline (booking_id, time, status, reason)
SELECT booking_id, now(), status, '' FROM filled, (VALUES ('HELD'), ('CONFIRMED')) AS t (status)
"""
_BATCH = 100_000


class Filler:
    """Fills the database of booking_svc on the server at `sockets`."""

    def __init__(self, sockets: str) -> None:
        self._sockets = sockets

    def events(self, count: int, *, model: str) -> None:
        """Adds events on sale with one offer each, otherwise like the event `model`."""
        with self._connect() as connection:
            connection.execute(_EVENTS, {"count": count, "model": model})
        self._vacuum("events", "offers", "stock_levels")

    def bookings(self, count: int, *, event: str, offer: str, customers: Sequence[str]) -> None:
        """Adds bookings of the customers in turn. The event's ledger does not contain them."""
        values = {"event": event, "offer": offer, "customers": list(customers)}
        with self._connect() as connection:
            for first in range(0, count, _BATCH):
                connection.execute(_BOOKINGS, {**values, "count": min(_BATCH, count - first)})
        self._vacuum("bookings", "booking_items", "booking_timeline")

    def booking_ids(
        self, event: str, customers: Sequence[str], count: int
    ) -> list[tuple[str, str]]:
        """Random bookings of the event, of any of the customers: customer and booking."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT customer_id::text, booking_id::text FROM bookings"
                " WHERE event_id = %s AND customer_id = ANY (%s::uuid[]) ORDER BY random() LIMIT %s",
                (event, list(customers), count),
            )
            return [(customer, booking) for customer, booking in rows]

    def _vacuum(self, *tables: str) -> None:
        with self._connect() as connection:
            for table in tables:
                connection.execute(f"VACUUM (ANALYZE) {table}")

    def _connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(
            host=self._sockets, user="postgres", dbname="booking", autocommit=True
        )
