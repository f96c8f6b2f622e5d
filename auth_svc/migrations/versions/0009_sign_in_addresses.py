"""Addresses from which the owners of accounts signed in."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sign_in_addresses",
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("address", sa.LargeBinary(), nullable=False),
        sa.Column("last_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "octet_length(address) = 32", name=op.f("sign_in_addresses_address_check")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("sign_in_addresses_user_id_fkey")
        ),
        sa.PrimaryKeyConstraint("user_id", "address", name=op.f("sign_in_addresses_pkey")),
    )
    op.create_index(
        op.f("sign_in_addresses_last_time_idx"), "sign_in_addresses", ["last_time"], unique=False
    )


def downgrade() -> None:
    op.drop_table("sign_in_addresses")
