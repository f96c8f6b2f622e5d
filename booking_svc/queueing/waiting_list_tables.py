"""The tables of waiting lists. Each invariant is a named constraint."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from booking_svc.tables import metadata

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

# One row for each event that somebody has waited for: the lock of its entries, the job that makes
# its offers (waiting_list_offers.py), and what the ledger is to keep for it (waiting_list_gate.py).
waiting_lists = sa.Table(
    "waiting_lists",
    metadata,
    sa.Column(
        "event_id", _Uuid, sa.ForeignKey("events.event_id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("last_number", sa.BigInteger, nullable=False),
    # The ledger has applied `synced_version` of the pools to keep; they differ after a crash.
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("synced_version", sa.BigInteger, nullable=False),
    sa.Column("kept_pool_ids", ARRAY(_Uuid), nullable=False),
    sa.Column("opened_pool_ids", ARRAY(_Uuid), nullable=False),
    # NULL when nobody waits and nothing is offered.
    sa.Column("due_time", _Time),
    # Of the first of the turns that have failed since the last one that did not.
    sa.Column("failing_since", _Time),
    sa.CheckConstraint("synced_version <= version", name="version"),
    sa.Index(
        "waiting_lists_due_time_idx", "due_time", postgresql_where=sa.text("due_time IS NOT NULL")
    ),
)

# The pools whose kept places gather for the entry in front, and since when (waiting_list_plan.py).
waiting_list_gathering = sa.Table(
    "waiting_list_gathering",
    metadata,
    sa.Column(
        "event_id",
        _Uuid,
        sa.ForeignKey("waiting_lists.event_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("pool_id", _Uuid, primary_key=True),
    sa.Column("since", _Time, nullable=False),
)

waiting_list_entries = sa.Table(
    "waiting_list_entries",
    metadata,
    sa.Column("entry_id", _Uuid, primary_key=True),
    sa.Column(
        "event_id",
        _Uuid,
        sa.ForeignKey("waiting_lists.event_id", ondelete="CASCADE"),
        nullable=False,
    ),
    # The order of joining.
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("customer_id", _Uuid, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # [[offer_id, quantity], …], and the pools that the offers draw on.
    sa.Column("items", JSONB, nullable=False),
    sa.Column("pool_ids", ARRAY(_Uuid), nullable=False),
    # Not used since 0026 (waiting_list_gathering): a later version removes it.
    sa.Column("gather_since", _Time),
    # Counts the offers, also those that the ledger refused: each has a request key of its own.
    sa.Column("offer_number", sa.Integer, nullable=False),
    # The places of the offer: [[offer_id, quantity, seat_id], …].
    sa.Column("lines", JSONB),
    sa.Column("reservation_id", _Uuid),
    sa.Column("offer_time", _Time),
    sa.Column("offer_expire_time", _Time),
    # When the ledger's hold ends: later than the offer, by the time of an ordinary hold.
    sa.Column("hold_expire_time", _Time),
    # The hold is nobody's and has to be released.
    sa.Column("is_release_due", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("booking_id", _Uuid),
    sa.Column("end_reason", sa.Text),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.CheckConstraint(
        "state IN ('WAITING', 'RESERVING', 'OFFERED', 'CLAIMED', 'EXPIRED', 'LEFT')", name="state"
    ),
    sa.CheckConstraint(
        "state NOT IN ('RESERVING', 'OFFERED') OR reservation_id IS NOT NULL"
        " AND lines IS NOT NULL AND offer_expire_time IS NOT NULL"
        " AND hold_expire_time > offer_expire_time",
        name="offer",
    ),
    sa.CheckConstraint("(state = 'CLAIMED') = (booking_id IS NOT NULL)", name="booking"),
    sa.CheckConstraint("(state IN ('EXPIRED', 'LEFT')) = (end_reason IS NOT NULL)", name="end"),
    sa.UniqueConstraint("event_id", "number", name="waiting_list_entries_event_id_number_key"),
    sa.Index(
        "waiting_list_entries_live_key",
        "event_id",
        "customer_id",
        unique=True,
        postgresql_where=sa.text("state IN ('WAITING', 'RESERVING', 'OFFERED')"),
    ),
    sa.Index(
        "waiting_list_entries_live_number_idx",
        "event_id",
        "number",
        postgresql_where=sa.text("state IN ('WAITING', 'RESERVING', 'OFFERED')"),
    ),
    sa.Index(
        "waiting_list_entries_release_due_idx",
        "event_id",
        postgresql_where=sa.text("is_release_due"),
    ),
    sa.Index("waiting_list_entries_customer_id_idx", "customer_id"),
)
