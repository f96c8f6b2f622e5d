"""The catalogue's tables. Each invariant is a named constraint."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

from booking_svc.tables import metadata

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

venues = sa.Table(
    "venues",
    metadata,
    sa.Column("venue_id", _Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False, server_default=sa.func.now()),
    sa.Column("delete_time", _Time),
    # As of events; both are NULL until search_results.py has indexed the row.
    sa.Column("search", TSVECTOR),
    sa.Column("name_search", TSVECTOR),
    sa.Index("venues_name_venue_id_idx", "name", "venue_id"),
    sa.Index("venues_search_idx", "search", postgresql_using="gin"),
)

productions = sa.Table(
    "productions",
    metadata,
    sa.Column("production_id", _Uuid, primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("duration_minutes", sa.Integer),
    sa.Column("poster_url", sa.Text, nullable=False),
    sa.Column("age_rating", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("tags", ARRAY(sa.Text), nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    sa.Column("delete_time", _Time),
    # As of events; both are NULL until search_results.py has indexed the row.
    sa.Column("search", TSVECTOR),
    sa.Column("name_search", TSVECTOR),
    sa.CheckConstraint("duration_minutes > 0", name="duration"),
    sa.Index("productions_search_idx", "search", postgresql_using="gin"),
    sa.Index(
        "productions_title_production_id_idx",
        "title",
        "production_id",
        postgresql_where=sa.text("delete_time IS NULL"),
    ),
)

auditoriums = sa.Table(
    "auditoriums",
    metadata,
    sa.Column("auditorium_id", _Uuid, primary_key=True),
    sa.Column("venue_id", _Uuid, sa.ForeignKey("venues.venue_id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False, server_default=sa.func.now()),
    sa.Column("delete_time", _Time),
    sa.Index("auditoriums_venue_id_name_idx", "venue_id", "name", "auditorium_id"),
)

seats = sa.Table(
    "seats",
    metadata,
    sa.Column("seat_id", _Uuid, primary_key=True),
    sa.Column("auditorium_id", _Uuid, sa.ForeignKey("auditoriums.auditorium_id"), nullable=False),
    sa.Column("row_index", sa.Integer, nullable=False),
    sa.Column("seat_index", sa.Integer, nullable=False),
    # Empty for a row without one.
    sa.Column("section", sa.Text, nullable=False, server_default=""),
    sa.Column("row_label", sa.Text, nullable=False),
    sa.Column("number", sa.Text, nullable=False),
    sa.Column("seat_type", sa.Text, nullable=False),
    sa.Column("x", sa.Double),
    sa.Column("y", sa.Double),
    sa.Column("is_active", sa.Boolean, nullable=False, server_default="true"),
    # Minor units, added to the offer's price. Never changes: event_memory.py keeps it.
    sa.Column("price_modifier", sa.BigInteger, nullable=False, server_default="0"),
    sa.UniqueConstraint(
        "auditorium_id", "section", "row_label", "number", name="seats_auditorium_id_place_key"
    ),
    sa.CheckConstraint("seat_type IN ('REGULAR', 'PREMIUM', 'WHEELCHAIR')", name="seat_type"),
)

# The migration adds a constraint that SQLAlchemy cannot express: EXCLUDE for overlapping events
# in one auditorium.
events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", _Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("production_id", _Uuid),
    sa.Column("auditorium_id", _Uuid, sa.ForeignKey("auditoriums.auditorium_id")),
    sa.Column("venue_id", _Uuid, sa.ForeignKey("venues.venue_id")),
    sa.Column("venue_name", sa.Text),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("start_time", _Time),
    sa.Column("end_time", _Time),
    sa.Column("sale_start_time", _Time, nullable=False),
    sa.Column("sale_end_time", _Time),
    # Set by the staff. current_status, for lists, is derived from it, the clock and the stock; it
    # changes at next_transition_time, or earlier when the stock changes it.
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("current_status", sa.Text, nullable=False),
    # Named turn_time in the database.
    sa.Column("turn_time", _Time, key="next_transition_time"),
    sa.Column("is_sold_out", sa.Boolean, nullable=False),
    # Sort key of lists: the start time, or infinity without one.
    sa.Column(
        "sort_time",
        _Time,
        sa.Computed("COALESCE(start_time, 'infinity'::timestamp with time zone)", persisted=True),
        nullable=False,
    ),
    sa.Column("search", TSVECTOR, nullable=False),
    # A change of stock is in progress until then; it locks out other changes.
    sa.Column("changing_until", _Time),
    sa.Column("currency_code", sa.CHAR(3), nullable=False),
    sa.Column("cancellation_policy", JSONB, nullable=False),
    sa.Column("total_capacity", sa.Integer, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    # Across all offers; enforced by the ledger.
    sa.Column("per_customer_limit", sa.Integer),
    # Deleted with bookings, which keep it.
    sa.Column("delete_time", _Time),
    # The words of the name, which decide the order of results. NULL until search_results.py has
    # indexed the row: an older version does not write it.
    sa.Column("name_search", TSVECTOR),
    # Placing requires an admission; kept by the queueing package.
    sa.Column("has_waiting_room", sa.Boolean, nullable=False, server_default="false"),
    sa.CheckConstraint("status IN ('DRAFT', 'UPCOMING', 'PAUSED', 'CANCELLED')", name="status"),
    sa.CheckConstraint(
        "current_status IN ('DRAFT', 'UPCOMING', 'ON_SALE', 'SOLD_OUT', 'PAUSED', 'ENDED',"
        " 'CANCELLED')",
        name="current_status",
    ),
    sa.CheckConstraint("end_time > start_time", name="end_after_start"),
    sa.CheckConstraint("sale_end_time > sale_start_time", name="sale_end_after_start"),
    # One index for each filter of lists, in list order.
    sa.Index("events_sort_idx", "sort_time", "event_id"),
    sa.Index("events_current_status_sort_idx", "current_status", "sort_time", "event_id"),
    sa.Index(
        "events_production_id_sort_idx",
        "production_id",
        "sort_time",
        "event_id",
        postgresql_where=sa.text("production_id IS NOT NULL"),
    ),
    sa.Index(
        "events_venue_id_sort_idx",
        "venue_id",
        "sort_time",
        "event_id",
        postgresql_where=sa.text("venue_id IS NOT NULL"),
    ),
    sa.Index("events_search_idx", "search", postgresql_using="gin"),
    sa.Index(
        "events_turn_time_idx",
        "next_transition_time",
        postgresql_where=sa.text("turn_time IS NOT NULL"),
    ),
)

favourites = sa.Table(
    "favourites",
    metadata,
    sa.Column("user_id", _Uuid, primary_key=True),
    sa.Column(
        "event_id",
        _Uuid,
        sa.ForeignKey("events.event_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("favourites_user_id_create_time_idx", "user_id", "create_time", "event_id"),
    sa.Index("favourites_event_id_idx", "event_id"),
)

# The words of all events, to correct misspelt queries (search.py).
search_words = sa.Table(
    "search_words",
    metadata,
    # Sorted by bytes, so that a prefix is a range.
    sa.Column("word", sa.Text(collation="C"), primary_key=True),
    sa.Column("trigrams", ARRAY(sa.Text), nullable=False),
    sa.Index("search_words_trigrams_idx", "trigrams", postgresql_using="gin"),
)

# Levels of each pool from the ledger's change stream (stock_projection.py).
stock_levels = sa.Table(
    "stock_levels",
    metadata,
    sa.Column("event_id", _Uuid, sa.ForeignKey("events.event_id"), primary_key=True),
    sa.Column("pool_id", _Uuid, primary_key=True),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("available", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)

offers = sa.Table(
    "offers",
    metadata,
    sa.Column("event_id", _Uuid, sa.ForeignKey("events.event_id"), primary_key=True),
    sa.Column("offer_id", _Uuid, primary_key=True),
    sa.Column("offer_index", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("price_minor", sa.BigInteger, nullable=False),
    sa.Column("pool_id", _Uuid, nullable=False),
    sa.Column("capacity", sa.Integer),
    sa.Column("seat_type", sa.Text),
    sa.Column("per_customer_limit", sa.Integer, nullable=False),
    sa.Column("max_per_booking", sa.Integer, nullable=False),
    sa.CheckConstraint("price_minor >= 0", name="price"),
)

# Stock to remove from the ledger: of deleted events, and of events whose creation is not complete.
# With `taken` the event can no longer be created.
orphaned_stock = sa.Table(
    "unwanted_stock",
    metadata,
    sa.Column("event_id", _Uuid, primary_key=True),
    sa.Column("due_time", _Time, nullable=False),
    sa.Column("taken", sa.Boolean, nullable=False),
    sa.Index("unwanted_stock_due_time_idx", "due_time"),
)

# Cancelled events whose bookings are being cancelled, batch by batch.
event_cancellations = sa.Table(
    "event_cancellations",
    metadata,
    sa.Column("event_id", _Uuid, sa.ForeignKey("events.event_id"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("bookings_found", sa.Integer, nullable=False),
    sa.Column("bookings_cancelled", sa.Integer, nullable=False),
    sa.Column("start_time", _Time, nullable=False),
    sa.Column("finish_time", _Time),
    # Time of the next batch; NULL when no booking or refund can follow.
    sa.Column("next_time", _Time),
    sa.Index(
        "event_cancellations_next_time_idx",
        "next_time",
        postgresql_where=sa.text("next_time IS NOT NULL"),
    ),
)

# Events that moved: customers are notified, and may cancel for some days.
event_moves = sa.Table(
    "event_moves",
    metadata,
    sa.Column("move_id", _Uuid, primary_key=True),
    # ON DELETE CASCADE: an event without bookings can be deleted.
    sa.Column(
        "event_id", _Uuid, sa.ForeignKey("events.event_id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("before", JSONB, nullable=False),
    sa.Column("after", JSONB, nullable=False),
    sa.Column("move_time", _Time, nullable=False),
    # Time of the next batch of customers to notify; NULL when all are notified.
    sa.Column("next_time", _Time),
    # The last booking whose customer is notified.
    sa.Column("notified_booking_id", _Uuid),
    sa.Index("event_moves_event_id_move_time_idx", "event_id", "move_time"),
    sa.Index(
        "event_moves_next_time_idx",
        "next_time",
        postgresql_where=sa.text("next_time IS NOT NULL"),
    ),
)
