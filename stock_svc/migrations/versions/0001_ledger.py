"""The ledger: pools, offers, seats, reservations, claims, totals and append-only movements.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "customer_totals",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.Column("customer_id", sa.UUID(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("per_customer_limit", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "quantity <= per_customer_limit", name=op.f("customer_totals_purchase_limit_check")
        ),
        sa.CheckConstraint("quantity >= 0", name=op.f("customer_totals_quantity_check")),
        sa.PrimaryKeyConstraint("event_id", "offer_id", "customer_id", name="customer_totals_pkey"),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="events_pkey"),
    )
    op.create_table(
        "movements",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("movement_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("capacity_delta", sa.Integer(), nullable=False),
        sa.Column("held_delta", sa.Integer(), nullable=False),
        sa.Column("sold_delta", sa.Integer(), nullable=False),
        sa.Column("reservation_id", sa.UUID(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('DEFINE', 'RESERVE', 'COMMIT', 'RELEASE', 'EXPIRE', 'RETURN', 'RESTOCK')",
            name=op.f("movements_kind_check"),
        ),
        sa.PrimaryKeyConstraint("event_id", "movement_id", name="movements_pkey"),
    )
    op.create_table(
        "reservations",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("reservation_id", sa.UUID(), nullable=False),
        sa.Column("customer_id", sa.UUID(), nullable=False),
        sa.Column("request_key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("extended", sa.Boolean(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('ACTIVE', 'COMMITTED', 'RELEASED', 'EXPIRED', 'RETURNED')",
            name=op.f("reservations_state_check"),
        ),
        sa.PrimaryKeyConstraint("event_id", "reservation_id", name="reservations_pkey"),
    )
    op.create_index(
        "reservations_active_expire_time_idx",
        "reservations",
        ["event_id", "expire_time"],
        unique=False,
        postgresql_where=sa.text("state = 'ACTIVE'"),
    )
    op.create_index(
        "reservations_live_request_key_idx",
        "reservations",
        ["event_id", "request_key"],
        unique=True,
        postgresql_where=sa.text("state IN ('ACTIVE', 'COMMITTED')"),
    )
    op.create_table(
        "pools",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.Column("sold", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("held + sold <= capacity", name=op.f("pools_oversold_check")),
        sa.CheckConstraint("held >= 0", name=op.f("pools_held_check")),
        sa.CheckConstraint("sold >= 0", name=op.f("pools_sold_check")),
        sa.ForeignKeyConstraint(["event_id"], ["events.event_id"], name="pools_event_id_fkey"),
        sa.PrimaryKeyConstraint("event_id", "pool_id", name="pools_pkey"),
    )
    op.create_table(
        "reservation_lines",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("reservation_id", sa.UUID(), nullable=False),
        sa.Column("line_number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("seat_id", sa.UUID(), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity >= 1", name=op.f("reservation_lines_quantity_check")),
        sa.CheckConstraint(
            "seat_id IS NULL OR quantity = 1", name=op.f("reservation_lines_seat_quantity_check")
        ),
        sa.ForeignKeyConstraint(
            ["event_id", "reservation_id"],
            ["reservations.event_id", "reservations.reservation_id"],
            name="reservation_lines_event_id_fkey",
        ),
        sa.PrimaryKeyConstraint(
            "event_id", "reservation_id", "line_number", name="reservation_lines_pkey"
        ),
    )
    op.create_table(
        "seat_claims",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("reservation_id", sa.UUID(), nullable=False),
        sa.Column("seat_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "state IN ('HELD', 'SOLD', 'FREED')", name=op.f("seat_claims_state_check")
        ),
        sa.ForeignKeyConstraint(
            ["event_id", "reservation_id"],
            ["reservations.event_id", "reservations.reservation_id"],
            name="seat_claims_event_id_fkey",
        ),
        sa.PrimaryKeyConstraint("event_id", "reservation_id", "seat_id", name="seat_claims_pkey"),
    )
    op.create_index(
        "seat_claims_live_idx",
        "seat_claims",
        ["event_id", "seat_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('HELD', 'SOLD')"),
    )
    op.create_table(
        "offers",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("per_customer_limit", sa.Integer(), nullable=False),
        sa.Column("seated", sa.Boolean(), nullable=False),
        sa.CheckConstraint("per_customer_limit >= 1", name=op.f("offers_per_customer_limit_check")),
        sa.ForeignKeyConstraint(
            ["event_id", "pool_id"],
            ["pools.event_id", "pools.pool_id"],
            name="offers_event_id_fkey",
        ),
        sa.PrimaryKeyConstraint("event_id", "offer_id", name="offers_pkey"),
    )
    op.create_table(
        "seats",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("seat_id", sa.UUID(), nullable=False),
        sa.Column("offer_id", sa.UUID(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id", "offer_id"],
            ["offers.event_id", "offers.offer_id"],
            name="seats_event_id_fkey",
        ),
        sa.PrimaryKeyConstraint("event_id", "seat_id", name="seats_pkey"),
    )
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
                USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER movements_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON movements
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """
    )


def downgrade() -> None:
    for table in (
        "seats",
        "offers",
        "seat_claims",
        "reservation_lines",
        "pools",
        "reservations",
        "movements",
        "events",
        "customer_totals",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_change()")
