"""Sections above rows, and modifiers of the price for seats."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_OLD = "seats_auditorium_id_row_label_number_key"
_NEW = "seats_auditorium_id_place_key"


def upgrade() -> None:
    op.add_column("seats", sa.Column("section", sa.Text(), server_default="", nullable=False))
    op.add_column(
        "seats", sa.Column("price_modifier", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.create_unique_constraint(
        op.f(_NEW), "seats", ["auditorium_id", "section", "row_label", "number"]
    )
    op.drop_constraint(op.f(_OLD), "seats", type_="unique")


def downgrade() -> None:
    op.create_unique_constraint(op.f(_OLD), "seats", ["auditorium_id", "row_label", "number"])
    op.drop_constraint(op.f(_NEW), "seats", type_="unique")
    op.drop_column("seats", "price_modifier")
    op.drop_column("seats", "section")
