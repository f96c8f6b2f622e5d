"""The statements that many reservations at once are made with, as PostgreSQL gets them.

Each takes arrays, one element per row, so that a batch costs as many statements as one request.
The guards are here: `held + sold <= capacity`, the purchase limit of an offer, and the unique
indexes on live seat claims and request keys that ON CONFLICT does not hide. That of an event is
the trigger `customer_totals_event_limit`.
"""

from typing import Any

from stock_svc.reservation import Reservation
from stock_svc.states import State

LAPSED = """
SELECT wanted.event_id FROM unnest(%s::uuid[]) AS wanted (event_id)
WHERE EXISTS (
    SELECT 1 FROM reservations AS lapsed
    WHERE lapsed.event_id = wanted.event_id AND lapsed.state = 'ACTIVE'
      AND lapsed.expire_time <= %s
)
"""

OFFERS = """
SELECT event_id, offer_id, pool_id, offers.per_customer_limit, offers.seated,
       pools.capacity - pools.held - pools.sold
FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (event_id, offer_id)
JOIN offers USING (event_id, offer_id) JOIN pools USING (event_id, pool_id)
"""

# The pools of events with a limit of their own: who counts against it locks them all.
KNOWN_EVENTS = """
SELECT event_id, events.per_customer_limit, CASE WHEN events.per_customer_limit IS NOT NULL
    THEN ARRAY(SELECT pools.pool_id FROM pools WHERE pools.event_id = wanted.event_id) END
FROM unnest(%s::uuid[]) AS wanted (event_id) JOIN events USING (event_id)
WHERE EXISTS (SELECT 1 FROM pools WHERE pools.event_id = wanted.event_id)
"""

SEATS = """
SELECT event_id, seat_id, seats.offer_id,
       seats.blocked OR EXISTS (
           SELECT 1 FROM seat_claims AS claim
           WHERE claim.event_id = seats.event_id AND claim.seat_id = seats.seat_id
             AND claim.state IN ('HELD', 'SOLD')
       )
FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (event_id, seat_id)
JOIN seats USING (event_id, seat_id)
"""

_RESERVATION = """
       found.event_id, found.reservation_id, found.customer_id, found.request_key,
       found.fingerprint, found.state, found.expire_time, found.extended, found.create_time,
       found.update_time, found.replaces
"""

FIRST_BY_KEY = f"""
SELECT wanted.number, {_RESERVATION}
FROM unnest(%s::int[], %s::uuid[], %s::text[]) AS wanted (number, event_id, request_key)
JOIN reservations AS found ON found.event_id = wanted.event_id
 AND found.request_key = wanted.request_key AND found.state IN ('ACTIVE', 'COMMITTED')
"""

FIRST_BY_ID = f"""
SELECT wanted.number, {_RESERVATION}
FROM unnest(%s::int[], %s::uuid[], %s::uuid[]) AS wanted (number, event_id, reservation_id)
JOIN reservations AS found USING (event_id, reservation_id)
"""

LINES = """
SELECT event_id, reservation_id, lines.pool_id, lines.offer_id, lines.quantity, lines.seat_id
FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (event_id, reservation_id)
JOIN reservation_lines AS lines USING (event_id, reservation_id)
ORDER BY event_id, reservation_id, line_number
"""

# In sorted order, as every transaction does; before the pools.
LOCK_RESERVATIONS = f"""
SELECT {_RESERVATION} FROM reservations AS found
WHERE (event_id, reservation_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
ORDER BY event_id, reservation_id FOR NO KEY UPDATE
"""

# COMMITTED is the only end that has another after it.
MOVE_RESERVATIONS = """
UPDATE reservations SET state = given.state, expire_time = given.expire_time,
    extended = given.extended, update_time = now
FROM (SELECT %s::timestamptz AS now) AS moment, unnest(%s::uuid[], %s::uuid[], %s::text[],
    %s::timestamptz[], %s::bool[])
    AS given (event_id, reservation_id, state, expire_time, extended)
WHERE reservations.event_id = given.event_id
  AND reservations.reservation_id = given.reservation_id
  AND reservations.state IN ('ACTIVE', 'COMMITTED')
"""

SUBTRACT_FROM_TOTALS = """
UPDATE customer_totals AS totals SET quantity = totals.quantity - given.quantity
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[])
    AS given (event_id, offer_id, customer_id, quantity)
WHERE totals.event_id = given.event_id AND totals.offer_id = given.offer_id
  AND totals.customer_id = given.customer_id
"""

MOVE_SEATS = """
UPDATE seat_claims AS claim SET state = %s
FROM (SELECT %s::text AS source) AS move, unnest(%s::uuid[], %s::uuid[], %s::uuid[])
    AS given (event_id, reservation_id, seat_id)
WHERE claim.event_id = given.event_id AND claim.reservation_id = given.reservation_id
  AND claim.seat_id = given.seat_id AND claim.state = source
"""

# In sorted order, as every transaction does, so that two of them cannot deadlock.
LOCK_POOLS = """
SELECT event_id, pool_id, capacity, held, sold, version FROM pools
WHERE (event_id, pool_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
ORDER BY event_id, pool_id FOR NO KEY UPDATE
"""

VERSIONS = """
SELECT wanted.event_id, (
    SELECT sum(pools.version)::bigint FROM pools WHERE pools.event_id = wanted.event_id
), (
    SELECT events.per_customer_limit FROM events WHERE events.event_id = wanted.event_id
) FROM unnest(%s::uuid[]) AS wanted (event_id)
"""

TOTALS = """
SELECT event_id, offer_id, customer_id, totals.quantity
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS wanted (event_id, offer_id, customer_id)
JOIN customer_totals AS totals USING (event_id, offer_id, customer_id)
"""

EVENT_TOTALS = """
SELECT event_id, customer_id, sum(totals.quantity)::bigint
FROM unnest(%s::uuid[], %s::uuid[]) AS wanted (event_id, customer_id)
JOIN offers USING (event_id)
JOIN customer_totals AS totals USING (event_id, offer_id, customer_id)
GROUP BY event_id, customer_id
"""

# Who has the key or the id already is left out, and so seen by the number of rows. Sorted by
# key: two batches with the same keys wait for each other in one order.
INSERT_RESERVATIONS = """
INSERT INTO reservations (event_id, reservation_id, customer_id, request_key, fingerprint, state,
    expire_time, extended, create_time, update_time, replaces)
SELECT event_id, reservation_id, customer_id, request_key, fingerprint, 'ACTIVE',
    expire_time, false, now, now, replaces
FROM (SELECT %s::timestamptz AS now) AS moment, unnest(%s::uuid[], %s::uuid[], %s::uuid[],
    %s::text[], %s::bytea[], %s::timestamptz[], %s::uuid[]) AS given (event_id, reservation_id,
    customer_id, request_key, fingerprint, expire_time, replaces)
ORDER BY event_id, request_key
ON CONFLICT DO NOTHING
"""

INSERT_LINES = """
INSERT INTO reservation_lines
    (event_id, reservation_id, line_number, offer_id, pool_id, seat_id, quantity)
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::smallint[], %s::uuid[], %s::uuid[], %s::uuid[],
    %s::int[])
"""

INSERT_CLAIMS = """
INSERT INTO seat_claims (event_id, reservation_id, seat_id, state)
SELECT event_id, reservation_id, seat_id, 'HELD'
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS given (event_id, reservation_id, seat_id)
JOIN seats USING (event_id, seat_id) WHERE NOT seats.blocked
"""

# The limits of today count, and the row keeps them for its CHECK and its trigger.
ADD_TO_TOTALS = """
INSERT INTO customer_totals AS totals
    (event_id, offer_id, customer_id, quantity, per_customer_limit, event_limit)
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::int[])
ON CONFLICT (event_id, offer_id, customer_id) DO UPDATE
SET quantity = totals.quantity + excluded.quantity,
    per_customer_limit = excluded.per_customer_limit, event_limit = excluded.event_limit
WHERE totals.quantity + excluded.quantity <= excluded.per_customer_limit
"""

INSERT_MOVEMENTS = """
INSERT INTO movements (event_id, pool_id, kind, capacity_delta, held_delta, sold_delta,
    reservation_id, create_time)
SELECT given.*, %s::timestamptz FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::int[],
    %s::int[], %s::int[], %s::uuid[]) AS given
"""

# Test and change in one statement: the row lock makes this race-free.
CHANGE_POOLS = """
UPDATE pools SET capacity = pools.capacity + given.capacity, held = pools.held + given.held,
    sold = pools.sold + given.sold, version = version + given.entries
FROM unnest(%s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::int[], %s::int[])
    AS given (event_id, pool_id, capacity, held, sold, entries)
WHERE pools.event_id = given.event_id AND pools.pool_id = given.pool_id
  AND pools.held + given.held >= 0 AND pools.sold + given.sold >= 0
  AND pools.held + given.held + pools.sold + given.sold <= pools.capacity + given.capacity
RETURNING pools.event_id, pools.pool_id, pools.capacity, pools.held, pools.sold, pools.version
"""


def reservation(row: tuple[Any, ...]) -> Reservation:
    """A reservation without its lines, of a row with its columns."""
    event_id, reservation_id, customer_id, request_key, fingerprint, state, *others = row
    return Reservation(
        event_id, reservation_id, customer_id, request_key, fingerprint, State(state), *others
    )
