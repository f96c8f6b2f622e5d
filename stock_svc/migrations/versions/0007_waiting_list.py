"""Places that are kept for waiting lists."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KINDS = (
    "'DEFINE', 'RESERVE', 'COMMIT', 'RELEASE', 'EXPIRE', 'RETURN', 'RESTOCK',"
    " 'ADJUST', 'BLOCK', 'UNBLOCK', 'REMOVE'"
)


def upgrade() -> None:
    op.add_column(
        "events",
        sa.Column("waiting_list_version", sa.BigInteger(), server_default="0", nullable=False),
    )
    op.add_column("pools", sa.Column("open_places", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("pools_open_places_check"),
        "pools",
        "open_places >= 0 AND open_places <= capacity - held - sold",
    )
    _set_kinds(f"{_KINDS}, 'KEEP', 'OPEN'")


def downgrade() -> None:
    # Movements stay, as they are append-only: NOT VALID leaves those of the new kinds unchecked.
    _set_kinds(_KINDS, "NOT VALID")
    op.drop_constraint(op.f("pools_open_places_check"), "pools")
    op.drop_column("pools", "open_places")
    op.drop_column("events", "waiting_list_version")


def _set_kinds(kinds: str, validity: str = "") -> None:
    op.drop_constraint(op.f("movements_kind_check"), "movements")
    op.execute(
        f"ALTER TABLE movements ADD CONSTRAINT movements_kind_check CHECK (kind IN ({kinds}))"
        f" {validity}"
    )
