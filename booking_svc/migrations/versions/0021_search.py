"""Words of productions and venues, and the words of names, for the search of the catalogue."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL until booking_svc indexes the row (catalogue/search_results.py): at once when it starts,
    # and every hour what an older version has written meanwhile.
    op.add_column("events", sa.Column("name_search", TSVECTOR(), nullable=True))
    for table in ("productions", "venues"):
        op.add_column(table, sa.Column("search", TSVECTOR(), nullable=True))
        op.add_column(table, sa.Column("name_search", TSVECTOR(), nullable=True))
        op.create_index(f"{table}_search_idx", table, ["search"], postgresql_using="gin")


def downgrade() -> None:
    for table in ("productions", "venues"):
        op.drop_index(f"{table}_search_idx", table_name=table)
        op.drop_column(table, "name_search")
        op.drop_column(table, "search")
    op.drop_column("events", "name_search")
