"""Lists of events: what they are sorted, filtered and found by."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FILL = """
UPDATE events SET
    venue_id = (SELECT venue_id FROM auditoriums WHERE auditorium_id = events.auditorium_id),
    -- The loop that turns events looks at all that have a turn_time in the past.
    current_status = status,
    turn_time = create_time,
    is_sold_out = false,
    search = to_tsvector('simple', concat_ws(' ', name, description, venue_name));
INSERT INTO search_words (word, trigrams)
SELECT word, ARRAY(
    SELECT DISTINCT substr('  ' || word || ' ', n, 3) FROM generate_series(1, length(word) + 1) n
) FROM (SELECT DISTINCT unnest(tsvector_to_array(search)) COLLATE "C" FROM events) AS words (word);
INSERT INTO stock_levels (event_id, pool_id, capacity, available, version)
SELECT event_id, pool_id, max(coalesce(capacity, 0)), max(coalesce(capacity, 0)), 0
FROM offers GROUP BY event_id, pool_id;
"""


def upgrade() -> None:
    op.create_index("venues_name_venue_id_idx", "venues", ["name", "venue_id"])
    op.create_table(
        "search_words",
        sa.Column("word", sa.Text(collation="C"), nullable=False),
        sa.Column("trigrams", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("word", name=op.f("search_words_pkey")),
    )
    op.create_index(
        "search_words_trigrams_idx", "search_words", ["trigrams"], postgresql_using="gin"
    )
    op.create_table(
        "stock_levels",
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("pool_id", sa.UUID(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("available", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.event_id"], name=op.f("stock_levels_event_id_fkey")
        ),
        sa.PrimaryKeyConstraint("event_id", "pool_id", name=op.f("stock_levels_pkey")),
    )
    op.add_column("events", sa.Column("venue_id", sa.UUID()))
    op.add_column("events", sa.Column("current_status", sa.Text()))
    op.add_column("events", sa.Column("turn_time", sa.DateTime(timezone=True)))
    op.add_column("events", sa.Column("is_sold_out", sa.Boolean()))
    op.add_column("events", sa.Column("search", postgresql.TSVECTOR()))
    op.execute(_FILL)
    for column in ("current_status", "is_sold_out", "search"):
        op.alter_column("events", column, nullable=False)
    op.add_column(
        "events",
        sa.Column(
            "sort_time",
            sa.DateTime(timezone=True),
            sa.Computed(
                "COALESCE(start_time, 'infinity'::timestamp with time zone)", persisted=True
            ),
            nullable=False,
        ),
    )
    op.create_foreign_key("events_venue_id_fkey", "events", "venues", ["venue_id"], ["venue_id"])
    op.drop_constraint(op.f("events_status_check"), "events")
    op.create_check_constraint(
        op.f("events_status_check"),
        "events",
        "status IN ('DRAFT', 'UPCOMING', 'PAUSED', 'CANCELLED')",
    )
    op.create_check_constraint(
        op.f("events_current_status_check"),
        "events",
        "current_status IN ('DRAFT', 'UPCOMING', 'ON_SALE', 'SOLD_OUT', 'PAUSED', 'ENDED',"
        " 'CANCELLED')",
    )
    op.create_index("events_sort_idx", "events", ["sort_time", "event_id"])
    op.create_index(
        "events_current_status_sort_idx", "events", ["current_status", "sort_time", "event_id"]
    )
    for column in ("production_id", "venue_id"):
        op.create_index(
            f"events_{column}_sort_idx",
            "events",
            [column, "sort_time", "event_id"],
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.create_index("events_search_idx", "events", ["search"], postgresql_using="gin")
    op.create_index(
        "events_turn_time_idx",
        "events",
        ["turn_time"],
        postgresql_where=sa.text("turn_time IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("events_turn_time_idx", table_name="events")
    op.drop_index("events_search_idx", table_name="events")
    for column in ("venue_id", "production_id"):
        op.drop_index(f"events_{column}_sort_idx", table_name="events")
    op.drop_index("events_current_status_sort_idx", table_name="events")
    op.drop_index("events_sort_idx", table_name="events")
    op.drop_constraint(op.f("events_current_status_check"), "events")
    op.execute("UPDATE events SET status = 'PAUSED' WHERE status = 'DRAFT'")
    op.drop_constraint(op.f("events_status_check"), "events")
    op.create_check_constraint(
        op.f("events_status_check"), "events", "status IN ('UPCOMING', 'PAUSED', 'CANCELLED')"
    )
    op.drop_constraint("events_venue_id_fkey", "events")
    for column in ("sort_time", "search", "is_sold_out", "turn_time", "current_status", "venue_id"):
        op.drop_column("events", column)
    op.drop_table("stock_levels")
    op.drop_table("search_words")
    op.drop_index("venues_name_venue_id_idx", table_name="venues")
