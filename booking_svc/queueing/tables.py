"""Tables of waiting rooms. A visitor's position is computed (draw.py), not stored."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from booking_svc.tables import metadata

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)


def _event_id() -> sa.Column[object]:
    return sa.Column(
        "event_id",
        _Uuid,
        sa.ForeignKey("waiting_rooms.event_id", ondelete="CASCADE"),
        primary_key=True,
    )


waiting_rooms = sa.Table(
    "waiting_rooms",
    metadata,
    sa.Column(
        "event_id",
        _Uuid,
        sa.ForeignKey("events.event_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    # Differs when a room is removed and created again: tickets of the first are void.
    sa.Column("room_id", _Uuid, nullable=False),
    sa.Column("opens_before_sale_seconds", sa.Integer, nullable=False),
    # Null: AUTO.
    sa.Column("per_minute", sa.Integer),
    sa.Column("max_per_minute", sa.Integer),
    sa.Column("session_seconds", sa.Integer, nullable=False),
    sa.Column("proof_of_work_bits", sa.Integer, nullable=False),
    # The draw's secret is derived from the seed and the service's key; stored once it is public.
    sa.Column("draw_seed", sa.LargeBinary, nullable=False),
    sa.Column("commitment", sa.LargeBinary, nullable=False),
    sa.Column("draw_secret", sa.LargeBinary),
    sa.Column("participants", sa.Integer),
    sa.Column("draw_time", _Time),
    # The numbers of tickets are 0 to issued - 1; the places admitted are 0 to admitted - 1.
    sa.Column("issued", sa.Integer, nullable=False, server_default="0"),
    sa.Column("admitted", sa.Integer, nullable=False, server_default="0"),
    # The time up to which the rate is spent.
    sa.Column("advance_time", _Time),
    # Admissions that nobody claimed and that were given to the next.
    sa.Column("given_on", sa.Integer, nullable=False, server_default="0"),
    # AUTO: how many admitted visitors may be active.
    sa.Column("active_target", sa.Double, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.CheckConstraint("participants <= issued AND admitted <= issued", name="numbers"),
    sa.CheckConstraint(
        "(draw_secret IS NULL) = (participants IS NULL)"
        " AND (draw_time IS NULL) = (participants IS NULL)"
        " AND (admitted = 0 OR participants IS NOT NULL)",
        name="draw",
    ),
    sa.CheckConstraint("draw_secret IS NULL OR sha256(draw_secret) = commitment", name="secret"),
    sa.CheckConstraint(
        "per_minute > 0 AND max_per_minute IS NULL OR per_minute IS NULL AND"
        " (max_per_minute IS NULL OR max_per_minute > 0)",
        name="rate",
    ),
)

# One row each time that the places admitted grow: the first step beyond a place admitted it.
admission_steps = sa.Table(
    "admission_steps",
    metadata,
    _event_id(),
    sa.Column("admitted", sa.Integer, primary_key=True),
    sa.Column("time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    sa.CheckConstraint("expire_time > time", name="expire"),
)

# The ticket of each account.
queue_accounts = sa.Table(
    "queue_accounts",
    metadata,
    _event_id(),
    sa.Column("user_id", _Uuid, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("event_id", "number"),
)

# Admissions whose token was issued. One per account, and one per ticket.
queue_admissions = sa.Table(
    "queue_admissions",
    metadata,
    _event_id(),
    sa.Column("user_id", _Uuid, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    # When the holder had placed a booking.
    sa.Column("finish_time", _Time),
    sa.UniqueConstraint("event_id", "number"),
    sa.Index("queue_admissions_event_id_place_idx", "event_id", "place"),
    sa.Index("queue_admissions_event_id_expire_time_idx", "event_id", "expire_time"),
)

# Proofs of work that were used, and the ticket that each has paid for.
queue_proofs = sa.Table(
    "queue_proofs",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("queue_proofs_create_time_idx", "create_time"),
)

# What each process has counted of its PlaceBooking calls; AUTO takes and deletes it (steering.py).
queue_sales = sa.Table(
    "queue_sales",
    metadata,
    sa.Column("process_id", _Uuid, primary_key=True),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("busy", sa.Integer, nullable=False),
    sa.Column("slow", sa.Integer, nullable=False),
    sa.CheckConstraint("busy <= calls AND slow <= calls", name="counts"),
)

queue_refusals = sa.Table(
    "queue_refusals",
    metadata,
    _event_id(),
    sa.Column("cause", sa.Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)

# New tickets in each SLOT (durations.py), written with them: their sum is the room's `issued`.
queue_arrivals = sa.Table(
    "queue_arrivals",
    metadata,
    _event_id(),
    sa.Column("time", _Time, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)

# How long calls took in each SLOT, as a histogram whose buckets are those of durations.py.
queue_durations = sa.Table(
    "queue_durations",
    metadata,
    _event_id(),
    sa.Column("call", sa.Text, primary_key=True),
    sa.Column("time", _Time, primary_key=True),
    sa.Column("bucket", sa.Integer, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)
