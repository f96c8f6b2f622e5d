"""Webhooks of other senders; the sandbox's scripted faults."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "inbound_webhooks",
        sa.Column("inbound_id", sa.Uuid(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("receive_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("sha256 = sha256(body)", name=op.f("inbound_webhooks_sha256_check")),
        sa.PrimaryKeyConstraint("inbound_id", name=op.f("inbound_webhooks_pkey")),
        sa.UniqueConstraint("sender", "sha256", name=op.f("inbound_webhooks_sender_sha256_key")),
    )
    op.create_index("inbound_webhooks_receive_time_idx", "inbound_webhooks", ["receive_time"])
    op.create_table(
        "sandbox_faults",
        sa.Column("fault_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.Column("remaining", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("remaining >= 0", name=op.f("sandbox_faults_remaining_check")),
        sa.PrimaryKeyConstraint("fault_id", name=op.f("sandbox_faults_pkey")),
    )
    op.create_index("sandbox_faults_payment_id_idx", "sandbox_faults", ["payment_id"])
    op.add_column("sandbox_webhooks", sa.Column("payment_id", sa.Uuid(), nullable=True))
