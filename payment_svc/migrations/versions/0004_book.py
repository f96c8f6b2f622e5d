"""Double-entry book, unexplained things, compared days; provider's times of movements."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BALANCED = """
CREATE FUNCTION refuse_unbalanced_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE entry uuid := NEW.entry_id;
BEGIN
  IF NOT EXISTS (SELECT FROM book_lines WHERE entry_id = entry)
     OR EXISTS (SELECT FROM book_lines WHERE entry_id = entry
                GROUP BY currency_code HAVING sum(amount_minor) <> 0) THEN
    RAISE EXCEPTION 'book entry % is not balanced', entry USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER book_lines_balanced AFTER INSERT ON book_lines
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_unbalanced_entry();
CREATE CONSTRAINT TRIGGER book_entries_balanced AFTER INSERT ON book_entries
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_unbalanced_entry();
"""

_APPEND_ONLY = """
CREATE FUNCTION refuse_book_change() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the book is append-only'; END $$;
CREATE TRIGGER book_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON book_entries
FOR EACH STATEMENT EXECUTE FUNCTION refuse_book_change();
CREATE TRIGGER book_lines_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON book_lines
FOR EACH STATEMENT EXECUTE FUNCTION refuse_book_change();
"""

# What was captured and given back before there was a book.
_FILL = """
UPDATE captures SET event_time = create_time;
UPDATE refunds SET event_time = update_time WHERE status = 'PROCESSED';
INSERT INTO book_entries (entry_id, kind, payment_id, event_id, day, create_time)
SELECT capture_id, 'CAPTURE', payment_id, NULL::uuid, (create_time AT TIME ZONE 'UTC')::date, create_time
FROM captures
UNION ALL
SELECT refund_id, 'REFUND', payment_id, NULL::uuid, (update_time AT TIME ZONE 'UTC')::date, update_time
FROM refunds WHERE status = 'PROCESSED';
INSERT INTO book_lines (entry_id, account, currency_code, amount_minor)
SELECT capture_id, 'PROVIDER', currency_code, amount_minor FROM captures
UNION ALL
SELECT capture_id, CASE verdict WHEN 'ACCEPTED' THEN 'EVENT' ELSE 'SUSPENSE' END, currency_code,
       -amount_minor FROM captures
UNION ALL
SELECT refund_id, 'PROVIDER', currency_code, -amount_minor FROM refunds WHERE status = 'PROCESSED'
UNION ALL
SELECT refunds.refund_id, CASE verdict WHEN 'ACCEPTED' THEN 'EVENT' ELSE 'SUSPENSE' END,
       refunds.currency_code, refunds.amount_minor
FROM refunds JOIN captures USING (capture_id) WHERE refunds.status = 'PROCESSED';
"""


def upgrade() -> None:
    op.create_table(
        "compared_days",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("compare_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("provider", "day", name=op.f("compared_days_pkey")),
    )
    op.create_table(
        "provider_days",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("provider_minor", sa.BigInteger(), nullable=False),
        sa.Column("our_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('CAPTURE', 'REFUND')", name=op.f("provider_days_kind_check")),
        sa.PrimaryKeyConstraint(
            "provider", "day", "kind", "currency_code", name=op.f("provider_days_pkey")
        ),
    )
    op.create_table(
        "unexplained",
        sa.Column("unexplained_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("currency_code", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("close_time", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('WEBHOOK', 'CAPTURE', 'REFUND', 'OTHER_AMOUNT', 'MISSING_CAPTURE', 'MISSING_REFUND')",
            name=op.f("unexplained_kind_check"),
        ),
        sa.PrimaryKeyConstraint("unexplained_id", name=op.f("unexplained_pkey")),
        sa.UniqueConstraint(
            "provider", "kind", "reference", name=op.f("unexplained_provider_kind_reference_key")
        ),
    )
    op.create_index(
        "unexplained_open_idx",
        "unexplained",
        ["unexplained_id"],
        unique=False,
        postgresql_where=sa.text("close_time IS NULL"),
    )
    op.create_table(
        "book_entries",
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('CAPTURE', 'REFUND', 'FEE', 'DISPUTE')", name=op.f("book_entries_kind_check")
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.payment_id"], name=op.f("book_entries_payment_id_fkey")
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("book_entries_pkey")),
    )
    op.create_index("book_entries_day_idx", "book_entries", ["day"], unique=False)
    op.create_index("book_entries_event_id_idx", "book_entries", ["event_id"], unique=False)
    op.create_table(
        "book_lines",
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("currency_code", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "account IN ('PROVIDER', 'EVENT', 'FEES', 'SUSPENSE', 'DISPUTED')",
            name=op.f("book_lines_account_check"),
        ),
        sa.CheckConstraint(
            "currency_code ~ '^[A-Z]{3}$'", name=op.f("book_lines_currency_code_check")
        ),
        sa.CheckConstraint("amount_minor <> 0", name=op.f("book_lines_amount_check")),
        sa.ForeignKeyConstraint(
            ["entry_id"], ["book_entries.entry_id"], name=op.f("book_lines_entry_id_fkey")
        ),
        sa.PrimaryKeyConstraint(
            "entry_id", "account", "currency_code", name=op.f("book_lines_pkey")
        ),
    )
    op.add_column("captures", sa.Column("event_time", sa.DateTime(timezone=True), nullable=True))
    op.create_index("captures_event_time_idx", "captures", ["event_time"], unique=False)
    op.add_column("refunds", sa.Column("event_time", sa.DateTime(timezone=True), nullable=True))
    op.create_index("refunds_event_time_idx", "refunds", ["event_time"], unique=False)
    op.create_index(
        "refunds_provider_reference_idx", "refunds", ["provider_reference"], unique=False
    )
    op.execute(_FILL)
    op.execute(_BALANCED)
    op.execute(_APPEND_ONLY)
