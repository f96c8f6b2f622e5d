"""Waiting lists: since when the places of a pool gather, whoever is in front."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "waiting_list_gathering",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["waiting_lists.event_id"],
            name=op.f("waiting_list_gathering_event_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", "pool_id", name=op.f("waiting_list_gathering_pkey")),
    )


def downgrade() -> None:
    op.drop_table("waiting_list_gathering")
