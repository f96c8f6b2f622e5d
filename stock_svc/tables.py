"""The tables of the ledger. Keys begin with event_id, so that the tables shard by event; only
the outbox and the idempotency records, which no booking reads, have other keys. Named constraints
repeat the invariants of statements.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.database import NAMING
from mesh.db.idempotent import idempotency_table
from mesh.db.outbox import outbox_table

metadata = sa.MetaData(naming_convention=NAMING)

Key = tuple[UUID, UUID]
"""The key of a pool, an offer, a seat or a reservation: its event's id and its own."""

Uuid = postgresql.UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)


def _event_id() -> sa.Column[object]:
    return sa.Column("event_id", Uuid, primary_key=True)


# One row for each event whose stock is or was defined; the fingerprint shows a repetition.
events = sa.Table(
    "events",
    metadata,
    _event_id(),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    # Over all offers. Changed under the locks of all the event's pools.
    sa.Column("per_customer_limit", sa.Integer),
    # Of the last KeepForWaitingList that had an effect (waiting_list.py).
    sa.Column("waiting_list_version", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("per_customer_limit >= 1", name="per_customer_limit"),
)

# The counters. `version` is the number of the pool's movements. A transaction that changes a total
# or a seat claim holds the lock of its pool's row, so totals and claims need no order of locks.
pools = sa.Table(
    "pools",
    metadata,
    _event_id(),
    sa.Column("pool_id", Uuid, primary_key=True),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("held", sa.Integer, nullable=False),
    sa.Column("sold", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # While a waiting list keeps the places that come back: how many of the free places anybody can
    # reserve. NULL: all of them (waiting_list.py).
    sa.Column("open_places", sa.Integer),
    sa.ForeignKeyConstraint(["event_id"], ["events.event_id"]),
    sa.CheckConstraint("held >= 0", name="held"),
    sa.CheckConstraint("sold >= 0", name="sold"),
    sa.CheckConstraint("held + sold <= capacity", name="oversold"),
    sa.CheckConstraint(
        "open_places >= 0 AND open_places <= capacity - held - sold", name="open_places"
    ),
)

offers = sa.Table(
    "offers",
    metadata,
    _event_id(),
    sa.Column("offer_id", Uuid, primary_key=True),
    sa.Column("pool_id", Uuid, nullable=False),
    sa.Column("per_customer_limit", sa.Integer, nullable=False),
    sa.Column("seated", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["event_id", "pool_id"], ["pools.event_id", "pools.pool_id"]),
    sa.CheckConstraint("per_customer_limit >= 1", name="per_customer_limit"),
)

seats = sa.Table(
    "seats",
    metadata,
    _event_id(),
    sa.Column("seat_id", Uuid, primary_key=True),
    sa.Column("offer_id", Uuid, nullable=False),
    # Off sale, and not counted in its pool's capacity.
    sa.Column("blocked", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["event_id", "offer_id"], ["offers.event_id", "offers.offer_id"]),
)

reservations = sa.Table(
    "reservations",
    metadata,
    _event_id(),
    sa.Column("reservation_id", Uuid, primary_key=True),
    sa.Column("customer_id", Uuid, nullable=False),
    sa.Column("request_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    sa.Column("extended", sa.Boolean, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    # The reservation that an exchange ended for this one.
    sa.Column("replaces", Uuid),
    sa.CheckConstraint(
        "state IN ('ACTIVE', 'COMMITTED', 'RELEASED', 'EXPIRED', 'RETURNED')", name="state"
    ),
    sa.Index(
        "reservations_live_request_key_idx",
        "event_id",
        "request_key",
        unique=True,
        postgresql_where=sa.text("state IN ('ACTIVE', 'COMMITTED')"),
    ),
    sa.Index(
        "reservations_active_expire_time_idx",
        "event_id",
        "expire_time",
        postgresql_where=sa.text("state = 'ACTIVE'"),
    ),
)

is_active = reservations.c.state == sa.literal_column("'ACTIVE'")
is_live = reservations.c.state.in_(
    [sa.literal_column("'ACTIVE'"), sa.literal_column("'COMMITTED'")]
)
"""As literals: with parameters, prepared plans could not use the partial indexes."""

reservation_lines = sa.Table(
    "reservation_lines",
    metadata,
    _event_id(),
    sa.Column("reservation_id", Uuid, primary_key=True),
    sa.Column("line_number", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("offer_id", Uuid, nullable=False),
    sa.Column("pool_id", Uuid, nullable=False),
    sa.Column("seat_id", Uuid),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(
        ["event_id", "reservation_id"], ["reservations.event_id", "reservations.reservation_id"]
    ),
    sa.CheckConstraint("quantity >= 1", name="quantity"),
    sa.CheckConstraint("seat_id IS NULL OR quantity = 1", name="seat_quantity"),
)

# No foreign key to seats: its check would put a share lock on rows that many transactions use.
seat_claims = sa.Table(
    "seat_claims",
    metadata,
    _event_id(),
    sa.Column("reservation_id", Uuid, primary_key=True),
    sa.Column("seat_id", Uuid, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(
        ["event_id", "reservation_id"], ["reservations.event_id", "reservations.reservation_id"]
    ),
    sa.CheckConstraint("state IN ('HELD', 'SOLD', 'FREED')", name="state"),
    sa.Index(
        "seat_claims_live_idx",
        "event_id",
        "seat_id",
        unique=True,
        postgresql_where=sa.text("state IN ('HELD', 'SOLD')"),
    ),
)

claim_is_live = seat_claims.c.state.in_([sa.literal_column("'HELD'"), sa.literal_column("'SOLD'")])

# The places of an offer that a customer holds or has bought. The row has the offer's limit for the
# CHECK, and the event's for the trigger customer_totals_event_limit, which sums over its offers.
customer_totals = sa.Table(
    "customer_totals",
    metadata,
    _event_id(),
    sa.Column("offer_id", Uuid, primary_key=True),
    sa.Column("customer_id", Uuid, primary_key=True),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("per_customer_limit", sa.Integer, nullable=False),
    sa.Column("event_limit", sa.Integer),
    sa.CheckConstraint("quantity >= 0", name="quantity"),
    sa.CheckConstraint("quantity <= per_customer_limit", name="purchase_limit"),
)

# Append-only: the trigger movements_append_only refuses all statements but INSERT.
movements = sa.Table(
    "movements",
    metadata,
    _event_id(),
    sa.Column("movement_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("pool_id", Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("capacity_delta", sa.Integer, nullable=False),
    sa.Column("held_delta", sa.Integer, nullable=False),
    sa.Column("sold_delta", sa.Integer, nullable=False),
    sa.Column("reservation_id", Uuid),
    sa.Column("create_time", _Time, nullable=False),
    sa.CheckConstraint(
        "kind IN ('DEFINE', 'RESERVE', 'COMMIT', 'RELEASE', 'EXPIRE', 'RETURN', 'RESTOCK',"
        " 'ADJUST', 'BLOCK', 'UNBLOCK', 'REMOVE', 'KEEP', 'OPEN')",
        name="kind",
    ),
)

# The counters and seats after each transaction, for StockChangeService.
outbox = outbox_table(metadata)

idempotency_records = idempotency_table(metadata)


def any_of(ids: Iterable[UUID]) -> sa.ColumnElement[Any]:
    """For `column == any_of(ids)`: one parameter, so one prepared plan for any number of ids."""
    return sa.any_(sa.literal(list(ids), postgresql.ARRAY(Uuid)))


def rows(**columns: tuple[sa.types.TypeEngine[Any], Sequence[Any]]) -> sa.TableValuedAlias:
    """Columns of values as the rows of a statement: `rows(seat_id=(Uuid, [...]))`."""
    arrays = [sa.literal(list(values), postgresql.ARRAY(kind)) for kind, values in columns.values()]
    typed = [sa.column(name, kind) for name, (kind, _) in columns.items()]
    return sa.func.unnest(*arrays).table_valued(*typed).render_derived()
