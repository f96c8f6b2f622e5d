"""Favourites; productions, one for each production id that events have; changes of venues and auditoriums."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "productions",
        sa.Column("production_id", sa.Uuid(), primary_key=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("duration_minutes", sa.Integer()),
        sa.Column("poster_url", sa.Text(), nullable=False),
        sa.Column("age_rating", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("create_time", time, nullable=False),
        sa.Column("update_time", time, nullable=False),
        sa.Column("delete_time", time),
        sa.CheckConstraint("duration_minutes > 0", name="duration"),
    )
    op.create_index(
        "productions_title_production_id_idx",
        "productions",
        ["title", "production_id"],
        postgresql_where=sa.text("delete_time IS NULL"),
    )
    # Until now clients chose the id. The title is the name of the production's newest event.
    op.execute(
        "INSERT INTO productions SELECT DISTINCT ON (production_id)"
        " production_id, name, '', NULL, '', '', '', '{}', create_time, create_time, NULL"
        " FROM events WHERE production_id IS NOT NULL ORDER BY production_id, create_time DESC"
    )
    op.create_table(
        "favourites",
        sa.Column("user_id", sa.Uuid(), primary_key=True),
        sa.Column(
            "event_id",
            sa.Uuid(),
            sa.ForeignKey("events.event_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("create_time", time, nullable=False),
    )
    op.create_index(
        "favourites_user_id_create_time_idx", "favourites", ["user_id", "create_time", "event_id"]
    )
    op.create_index("favourites_event_id_idx", "favourites", ["event_id"])
    for table in ("venues", "auditoriums"):
        # The running version inserts rows without it.
        op.add_column(
            table,
            sa.Column("update_time", time, nullable=False, server_default=sa.func.now()),
        )
        op.execute(f"UPDATE {table} SET update_time = create_time")
        op.add_column(table, sa.Column("delete_time", time))
    op.add_column(
        "seats", sa.Column("is_active", sa.Boolean(), nullable=False, server_default="true")
    )
    op.create_index(
        "auditoriums_venue_id_name_idx", "auditoriums", ["venue_id", "name", "auditorium_id"]
    )


def downgrade() -> None:
    op.drop_table("favourites")
    op.drop_index("auditoriums_venue_id_name_idx")
    op.drop_column("seats", "is_active")
    for table in ("venues", "auditoriums"):
        op.drop_column(table, "delete_time")
        op.drop_column(table, "update_time")
    op.drop_table("productions")
