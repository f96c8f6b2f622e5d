"""Waiting lists of events that are sold out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('WAITING', 'RESERVING', 'OFFERED')")


def upgrade() -> None:
    op.create_table(
        "waiting_lists",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("synced_version", sa.BigInteger(), nullable=False),
        sa.Column("kept_pool_ids", postgresql.ARRAY(sa.UUID()), nullable=False),
        sa.Column("opened_pool_ids", postgresql.ARRAY(sa.UUID()), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("synced_version <= version", name=op.f("waiting_lists_version_check")),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["events.event_id"],
            name=op.f("waiting_lists_event_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("waiting_lists_pkey")),
    )
    op.create_index(
        "waiting_lists_due_time_idx",
        "waiting_lists",
        ["due_time"],
        postgresql_where=sa.text("due_time IS NOT NULL"),
    )
    op.create_table(
        "waiting_list_entries",
        sa.Column("entry_id", sa.UUID(), nullable=False),
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("customer_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("items", postgresql.JSONB(), nullable=False),
        sa.Column("pool_ids", postgresql.ARRAY(sa.UUID()), nullable=False),
        sa.Column("gather_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("offer_number", sa.Integer(), nullable=False),
        sa.Column("lines", postgresql.JSONB(), nullable=True),
        sa.Column("reservation_id", sa.UUID(), nullable=True),
        sa.Column("offer_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("offer_expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("hold_expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_release_due", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('WAITING', 'RESERVING', 'OFFERED', 'CLAIMED', 'EXPIRED', 'LEFT')",
            name=op.f("waiting_list_entries_state_check"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('RESERVING', 'OFFERED') OR reservation_id IS NOT NULL"
            " AND lines IS NOT NULL AND offer_expire_time IS NOT NULL"
            " AND hold_expire_time > offer_expire_time",
            name=op.f("waiting_list_entries_offer_check"),
        ),
        sa.CheckConstraint(
            "(state = 'CLAIMED') = (booking_id IS NOT NULL)",
            name=op.f("waiting_list_entries_booking_check"),
        ),
        sa.CheckConstraint(
            "(state IN ('EXPIRED', 'LEFT')) = (end_reason IS NOT NULL)",
            name=op.f("waiting_list_entries_end_check"),
        ),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["waiting_lists.event_id"],
            name=op.f("waiting_list_entries_event_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("waiting_list_entries_pkey")),
        sa.UniqueConstraint("event_id", "number", name="waiting_list_entries_event_id_number_key"),
    )
    op.create_index(
        "waiting_list_entries_live_key",
        "waiting_list_entries",
        ["event_id", "customer_id"],
        unique=True,
        postgresql_where=_LIVE,
    )
    op.create_index(
        "waiting_list_entries_live_number_idx",
        "waiting_list_entries",
        ["event_id", "number"],
        postgresql_where=_LIVE,
    )
    op.create_index(
        "waiting_list_entries_release_due_idx",
        "waiting_list_entries",
        ["event_id"],
        postgresql_where=sa.text("is_release_due"),
    )
    op.create_index("waiting_list_entries_customer_id_idx", "waiting_list_entries", ["customer_id"])


def downgrade() -> None:
    op.drop_table("waiting_list_entries")
    op.drop_table("waiting_lists")
