"""SQL that makes and moves many reservations at once; the callers run it in pipelines, or several
statements that write as one (mesh/db/pipeline.py).

Each statement takes arrays, one element per row: a batch costs as many statements as one request.
The guards are here: `held + sold <= capacity`, an offer's purchase limit, and the unique indexes
on live seat claims and request keys. The trigger `customer_totals_event_limit` has an event's.
"""

OFFERS = """
SELECT event_id, offer_id, pool_id, offers.per_customer_limit, offers.seated,
       pools.capacity - pools.held - pools.sold, pools.open_places
FROM unnest(%s::uuid[], %s::uuid[]) AS requested (event_id, offer_id)
JOIN offers USING (event_id, offer_id) JOIN pools USING (event_id, pool_id)
"""

# With the pools of events that have a limit of their own: reserving there locks all of them.
EVENTS = """
SELECT event_id, events.per_customer_limit, CASE WHEN events.per_customer_limit IS NOT NULL
    THEN ARRAY(SELECT pools.pool_id FROM pools WHERE pools.event_id = requested.event_id) END,
    EXISTS (
        SELECT 1 FROM reservations AS lapsed
        WHERE lapsed.event_id = requested.event_id AND lapsed.state = 'ACTIVE'
          AND lapsed.expire_time <= %s
    )
FROM unnest(%s::uuid[]) AS requested (event_id) JOIN events USING (event_id)
WHERE EXISTS (SELECT 1 FROM pools WHERE pools.event_id = requested.event_id)
"""

SEATS = """
SELECT event_id, seat_id, offers.pool_id,
       seats.blocked OR EXISTS (
           SELECT 1 FROM seat_claims AS claim
           WHERE claim.event_id = seats.event_id AND claim.seat_id = seats.seat_id
             AND claim.state IN ('HELD', 'SOLD')
       )
FROM unnest(%s::uuid[], %s::uuid[]) AS requested (event_id, seat_id)
JOIN seats USING (event_id, seat_id) JOIN offers USING (event_id, offer_id)
"""

# The state and the holder of seats that were refused.
TAKEN_SEATS = """
SELECT event_id, seat_id, CASE WHEN seats.blocked THEN 'BLOCKED' ELSE claim.state END,
       reservation.customer_id
FROM unnest(%s::uuid[], %s::uuid[]) AS requested (event_id, seat_id)
JOIN seats USING (event_id, seat_id)
LEFT JOIN LATERAL (
    SELECT claim.state, claim.reservation_id FROM seat_claims AS claim
    WHERE claim.event_id = requested.event_id AND claim.seat_id = requested.seat_id
      AND claim.state IN ('HELD', 'SOLD')
) AS claim ON true
LEFT JOIN LATERAL (
    SELECT reservations.customer_id FROM reservations
    WHERE reservations.event_id = requested.event_id
      AND reservations.reservation_id = claim.reservation_id
) AS reservation ON true
"""

# In the order of reservations.Reservation's fields.
_RESERVATION = """
       reservation.event_id, reservation.reservation_id, reservation.customer_id,
       reservation.request_key, reservation.fingerprint, reservation.state,
       reservation.expire_time, reservation.extended, reservation.create_time,
       reservation.update_time, reservation.replaces
"""

# By id and by live key; a request has at most two rows. A subquery for each request: a plan that
# was made while the table was small would join the requests with all live reservations.
EXISTING = f"""
SELECT requested.number, reservation.*
FROM unnest(%s::int[], %s::uuid[], %s::uuid[], %s::text[])
    AS requested (number, event_id, reservation_id, request_key)
CROSS JOIN LATERAL (
    (
        SELECT {_RESERVATION} FROM reservations AS reservation
        WHERE reservation.event_id = requested.event_id
          AND reservation.reservation_id = requested.reservation_id
        LIMIT 1
    ) UNION ALL (
        SELECT {_RESERVATION} FROM reservations AS reservation
        WHERE reservation.event_id = requested.event_id
          AND reservation.request_key = requested.request_key
          AND reservation.state IN ('ACTIVE', 'COMMITTED')
        LIMIT 1
    )
) AS reservation
"""

LINES = """
SELECT event_id, reservation_id, lines.pool_id, lines.offer_id, lines.quantity, lines.seat_id
FROM unnest(%s::uuid[], %s::uuid[]) AS requested (event_id, reservation_id)
JOIN reservation_lines AS lines USING (event_id, reservation_id)
ORDER BY event_id, reservation_id, line_number
"""

# In sorted order, as in every transaction; before the pools.
LOCK_RESERVATIONS = f"""
SELECT {_RESERVATION} FROM reservations AS reservation
WHERE (event_id, reservation_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
ORDER BY event_id, reservation_id FOR NO KEY UPDATE
"""

# COMMITTED can still become RETURNED; the other final states never change.
MOVE_RESERVATIONS = """
UPDATE reservations SET state = input.state, expire_time = input.expire_time,
    extended = input.extended, update_time = now
FROM (SELECT %s::timestamptz AS now) AS moment, unnest(%s::uuid[], %s::uuid[], %s::text[],
    %s::timestamptz[], %s::bool[])
    AS input (event_id, reservation_id, state, expire_time, extended)
WHERE reservations.event_id = input.event_id
  AND reservations.reservation_id = input.reservation_id
  AND reservations.state IN ('ACTIVE', 'COMMITTED')
"""

SUBTRACT_FROM_TOTALS = """
UPDATE customer_totals AS totals SET quantity = totals.quantity - input.quantity
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[])
    AS input (event_id, offer_id, customer_id, quantity)
WHERE totals.event_id = input.event_id AND totals.offer_id = input.offer_id
  AND totals.customer_id = input.customer_id
"""

MOVE_SEATS = """
UPDATE seat_claims AS claim SET state = input.target
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[])
    AS input (event_id, reservation_id, seat_id, source, target)
WHERE claim.event_id = input.event_id AND claim.reservation_id = input.reservation_id
  AND claim.seat_id = input.seat_id AND claim.state = input.source
"""

# In sorted order, so that two transactions cannot deadlock.
LOCK_POOLS = """
SELECT event_id, pool_id, capacity, held, sold, version, open_places FROM pools
WHERE (event_id, pool_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
ORDER BY event_id, pool_id FOR NO KEY UPDATE
"""

EVENT_VERSIONS = """
SELECT requested.event_id, (
    SELECT sum(pools.version)::bigint FROM pools WHERE pools.event_id = requested.event_id
), (
    SELECT events.per_customer_limit FROM events WHERE events.event_id = requested.event_id
) FROM unnest(%s::uuid[]) AS requested (event_id)
"""

TOTALS = """
SELECT event_id, offer_id, customer_id, totals.quantity
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS requested (event_id, offer_id, customer_id)
JOIN customer_totals AS totals USING (event_id, offer_id, customer_id)
"""

EVENT_TOTALS = """
SELECT event_id, customer_id, sum(totals.quantity)::bigint
FROM unnest(%s::uuid[], %s::uuid[]) AS requested (event_id, customer_id)
JOIN offers USING (event_id)
JOIN customer_totals AS totals USING (event_id, offer_id, customer_id)
GROUP BY event_id, customer_id
"""

# A subquery for each offer of an event: a join could read the totals of all its customers.
CUSTOMER_TOTALS = """
SELECT requested.number, offers.offer_id, total.quantity
FROM unnest(%s::int[], %s::uuid[], %s::uuid[]) AS requested (number, event_id, customer_id)
JOIN offers USING (event_id)
CROSS JOIN LATERAL (
    SELECT quantity FROM customer_totals
    WHERE customer_totals.event_id = requested.event_id
      AND customer_totals.offer_id = offers.offer_id
      AND customer_totals.customer_id = requested.customer_id
    LIMIT 1
) AS total
WHERE total.quantity > 0
"""

# A reservation whose live key or id exists is left out; the number of rows shows it. Sorted by
# key, so that two batches with the same keys wait for each other in one order.
INSERT_RESERVATIONS = """
INSERT INTO reservations (event_id, reservation_id, customer_id, request_key, fingerprint, state,
    expire_time, extended, create_time, update_time, replaces)
SELECT event_id, reservation_id, customer_id, request_key, fingerprint, 'ACTIVE',
    expire_time, false, now, now, replaces
FROM (SELECT %s::timestamptz AS now) AS moment, unnest(%s::uuid[], %s::uuid[], %s::uuid[],
    %s::text[], %s::bytea[], %s::timestamptz[], %s::uuid[]) AS input (event_id, reservation_id,
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
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS input (event_id, reservation_id, seat_id)
JOIN seats USING (event_id, seat_id) WHERE NOT seats.blocked
"""

# The present limits count; the row keeps them for its CHECK and its trigger.
ADD_TO_TOTALS = """
INSERT INTO customer_totals AS totals
    (event_id, offer_id, customer_id, quantity, per_customer_limit, event_limit)
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::int[])
ON CONFLICT (event_id, offer_id, customer_id) DO UPDATE
SET quantity = totals.quantity + excluded.quantity,
    per_customer_limit = excluded.per_customer_limit, event_limit = excluded.event_limit
WHERE totals.quantity + excluded.quantity <= excluded.per_customer_limit
"""

# This statement and CHANGE_POOLS are for ledger.post only.
INSERT_MOVEMENTS = """
INSERT INTO movements (event_id, pool_id, kind, capacity_delta, held_delta, sold_delta,
    reservation_id, create_time)
SELECT input.*, %s::timestamptz FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::int[],
    %s::int[], %s::int[], %s::uuid[]) AS input
"""

# For ledger.set_open_places only: from now on what is free is open to all, and what comes back is
# not (waiting_list.py); or everything is.
SET_OPEN_PLACES = """
UPDATE pools
SET open_places = CASE WHEN input.is_kept THEN pools.capacity - pools.held - pools.sold END
FROM unnest(%s::uuid[], %s::uuid[], %s::bool[]) AS input (event_id, pool_id, is_kept)
WHERE pools.event_id = input.event_id AND pools.pool_id = input.pool_id
"""

# Tests and changes in one statement: the row lock makes this race-free. What the waiting list
# takes comes from the places kept for it first, so that open_places is never above what is free.
CHANGE_POOLS = """
UPDATE pools SET capacity = pools.capacity + input.capacity, held = pools.held + input.held,
    sold = pools.sold + input.sold, version = version + input.entries,
    open_places = CASE WHEN pools.open_places IS NOT NULL THEN LEAST(
        pools.open_places - input.opened, pools.capacity + input.capacity - pools.held - input.held
            - pools.sold - input.sold
    ) END
FROM unnest(%s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[])
    AS input (event_id, pool_id, capacity, held, sold, opened, entries)
WHERE pools.event_id = input.event_id AND pools.pool_id = input.pool_id
  AND pools.held + input.held >= 0 AND pools.sold + input.sold >= 0
  AND pools.held + input.held + pools.sold + input.sold <= pools.capacity + input.capacity
"""
