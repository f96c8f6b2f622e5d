"""Embedded payments; phone numbers for payment pages; indexes for the lists of bookings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("bookings", "booking_changes"):
        op.add_column(table, sa.Column("payment_client_secret", sa.Text(), nullable=True))
    op.add_column("contacts", sa.Column("phone", sa.Text(), server_default="", nullable=False))
    op.add_column("contacts", sa.Column("search", TSVECTOR(), server_default="", nullable=False))
    # The words as customers.py makes them, but for accents and scripts without spaces: these are
    # written with the account's next change.
    op.execute(
        "UPDATE contacts SET search = array_to_tsvector(array_remove("
        "regexp_split_to_array(lower(full_name || ' ' || email), '[^[:alnum:]]+'), ''))"
    )
    op.create_index("contacts_search_idx", "contacts", ["search"], postgresql_using="gin")
    op.create_index(
        "bookings_create_time_idx", "bookings", ["create_time"], postgresql_using="brin"
    )


def downgrade() -> None:
    op.drop_index("bookings_create_time_idx", table_name="bookings")
    op.drop_column("contacts", "search")
    op.drop_column("contacts", "phone")
    for table in ("bookings", "booking_changes"):
        op.drop_column(table, "payment_client_secret")
