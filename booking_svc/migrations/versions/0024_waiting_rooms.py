"""Waiting rooms: their draws, admissions, accounts' tickets and used proofs of work."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "events",
        sa.Column("has_waiting_room", sa.Boolean(), server_default="false", nullable=False),
    )
    op.create_table(
        "waiting_rooms",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("room_id", sa.UUID(), nullable=False),
        sa.Column("opens_before_sale_seconds", sa.Integer(), nullable=False),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("max_per_minute", sa.Integer(), nullable=True),
        sa.Column("session_seconds", sa.Integer(), nullable=False),
        sa.Column("proof_of_work_bits", sa.Integer(), nullable=False),
        sa.Column("draw_seed", sa.LargeBinary(), nullable=False),
        sa.Column("commitment", sa.LargeBinary(), nullable=False),
        sa.Column("draw_secret", sa.LargeBinary(), nullable=True),
        sa.Column("participants", sa.Integer(), nullable=True),
        sa.Column("draw_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("issued", sa.Integer(), server_default="0", nullable=False),
        sa.Column("admitted", sa.Integer(), server_default="0", nullable=False),
        sa.Column("advance_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("given_on", sa.Integer(), server_default="0", nullable=False),
        sa.Column("active_target", sa.Double(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "participants <= issued AND admitted <= issued",
            name=op.f("waiting_rooms_numbers_check"),
        ),
        sa.CheckConstraint(
            "(draw_secret IS NULL) = (participants IS NULL)"
            " AND (draw_time IS NULL) = (participants IS NULL)"
            " AND (admitted = 0 OR participants IS NOT NULL)",
            name=op.f("waiting_rooms_draw_check"),
        ),
        sa.CheckConstraint(
            "draw_secret IS NULL OR sha256(draw_secret) = commitment",
            name=op.f("waiting_rooms_secret_check"),
        ),
        sa.CheckConstraint(
            "per_minute > 0 AND max_per_minute IS NULL OR per_minute IS NULL AND"
            " (max_per_minute IS NULL OR max_per_minute > 0)",
            name=op.f("waiting_rooms_rate_check"),
        ),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["events.event_id"],
            name=op.f("waiting_rooms_event_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("waiting_rooms_pkey")),
    )
    op.create_table(
        "admission_steps",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("admitted", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("expire_time > time", name=op.f("admission_steps_expire_check")),
        _of_room("admission_steps"),
        sa.PrimaryKeyConstraint("event_id", "admitted", name=op.f("admission_steps_pkey")),
    )
    op.create_table(
        "queue_accounts",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        _of_room("queue_accounts"),
        sa.PrimaryKeyConstraint("event_id", "user_id", name=op.f("queue_accounts_pkey")),
        sa.UniqueConstraint("event_id", "number", name=op.f("queue_accounts_event_id_number_key")),
    )
    op.create_table(
        "queue_admissions",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finish_time", sa.DateTime(timezone=True), nullable=True),
        _of_room("queue_admissions"),
        sa.PrimaryKeyConstraint("event_id", "user_id", name=op.f("queue_admissions_pkey")),
        sa.UniqueConstraint(
            "event_id", "number", name=op.f("queue_admissions_event_id_number_key")
        ),
    )
    op.create_index(
        "queue_admissions_event_id_place_idx", "queue_admissions", ["event_id", "place"]
    )
    op.create_index(
        "queue_admissions_event_id_expire_time_idx",
        "queue_admissions",
        ["event_id", "expire_time"],
    )
    op.create_table(
        "queue_proofs",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("queue_proofs_pkey")),
    )
    op.create_index("queue_proofs_create_time_idx", "queue_proofs", ["create_time"])
    op.create_table(
        "queue_refusals",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        _of_room("queue_refusals"),
        sa.PrimaryKeyConstraint("event_id", "cause", name=op.f("queue_refusals_pkey")),
    )


def _of_room(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["event_id"],
        ["waiting_rooms.event_id"],
        name=op.f(f"{table}_event_id_fkey"),
        ondelete="CASCADE",
    )


def downgrade() -> None:
    for table in (
        "queue_refusals",
        "queue_proofs",
        "queue_admissions",
        "queue_accounts",
        "admission_steps",
        "waiting_rooms",
    ):
        op.drop_table(table)
    op.drop_column("events", "has_waiting_room")
