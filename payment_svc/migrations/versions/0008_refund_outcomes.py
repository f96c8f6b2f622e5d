"""Refunds that fail late, are settled elsewhere or cancelled; disputed money; inquiries."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_CHECKS = [
    (
        "refunds",
        "refunds_status_check",
        "status IN ('PENDING', 'PROCESSED', 'FAILED')",
        "status IN ('PENDING', 'PROCESSED', 'FAILED', 'SETTLED_ELSEWHERE', 'CANCELLED')",
    ),
    (
        "disputes",
        "disputes_status_check",
        "status IN ('OPEN', 'WON', 'LOST')",
        "status IN ('INQUIRY', 'INQUIRY_CLOSED', 'OPEN', 'WON', 'LOST')",
    ),
    (
        "book_entries",
        "book_entries_kind_check",
        "kind IN ('CAPTURE', 'REFUND', 'FEE', 'DISPUTE')",
        "kind IN ('CAPTURE', 'REFUND', 'FEE', 'DISPUTE', 'SETTLEMENT')",
    ),
    (
        "book_lines",
        "book_lines_account_check",
        "account IN ('PROVIDER', 'EVENT', 'FEES', 'SUSPENSE', 'DISPUTED')",
        "account IN ('PROVIDER', 'EVENT', 'FEES', 'SUSPENSE', 'DISPUTED', 'ELSEWHERE')",
    ),
]

# Money that disputes took before the column existed.
_FILL = """
UPDATE captures SET disputed_minor = least(captures.amount_minor, taken.amount_minor)
FROM (SELECT provider, capture_reference, currency_code, sum(amount_minor)::bigint AS amount_minor
      FROM disputes WHERE status IN ('OPEN', 'LOST')
      GROUP BY provider, capture_reference, currency_code) AS taken
WHERE captures.provider = taken.provider
  AND captures.provider_reference = taken.capture_reference
  AND captures.currency_code = taken.currency_code;
"""


def upgrade() -> None:
    for table, name, _, check in _CHECKS:
        op.drop_constraint(op.f(name), table, type_="check")
        op.create_check_constraint(op.f(name), table, check)
    for column in ("settled", "disputed"):
        op.add_column(
            "captures",
            sa.Column(
                f"{column}_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False
            ),
        )
        op.create_check_constraint(
            op.f(f"captures_{column}_check"),
            "captures",
            f"{column}_minor >= 0 AND {column}_minor <= amount_minor",
        )
    op.execute(_FILL)
    op.add_column(
        "refunds",
        sa.Column(
            "failed_references",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
    )
    op.add_column(
        "refunds",
        sa.Column("reversals", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column(
        "refunds", sa.Column("note", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.drop_constraint(op.f("refunds_due_until_processed_check"), "refunds", type_="check")
    op.create_check_constraint(
        op.f("refunds_due_while_open_check"),
        "refunds",
        "due_time IS NULL OR status IN ('PENDING', 'FAILED')",
    )
    op.create_check_constraint(
        op.f("refunds_settled_has_note_check"),
        "refunds",
        "(status = 'SETTLED_ELSEWHERE') <= (note <> '')",
    )
    op.create_index(
        "refunds_for_staff_idx",
        "refunds",
        ["refund_id"],
        unique=False,
        postgresql_where=sa.text("status = 'FAILED' AND due_time IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("refunds_for_staff_idx", table_name="refunds")
    op.drop_constraint(op.f("refunds_settled_has_note_check"), "refunds", type_="check")
    op.drop_constraint(op.f("refunds_due_while_open_check"), "refunds", type_="check")
    op.create_check_constraint(
        op.f("refunds_due_until_processed_check"),
        "refunds",
        "(status = 'PROCESSED') = (due_time IS NULL)",
    )
    for column in ("note", "reversals", "failed_references"):
        op.drop_column("refunds", column)
    for column in ("settled", "disputed"):
        op.drop_constraint(op.f(f"captures_{column}_check"), "captures", type_="check")
        op.drop_column("captures", f"{column}_minor")
    for table, name, check, _ in _CHECKS:
        op.drop_constraint(op.f(name), table, type_="check")
        op.create_check_constraint(op.f(name), table, check)
