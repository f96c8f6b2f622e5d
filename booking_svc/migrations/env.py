"""Alembic's entry: booking_svc's tables, with those of its packages."""

from booking_svc.bookings import tables as _bookings  # noqa: F401 - adds its tables
from booking_svc.notifications import tables as _notifications  # noqa: F401 - adds its tables
from booking_svc.queueing import tables as _queueing  # noqa: F401 - adds its tables
from booking_svc.queueing import waiting_list_tables as _waiting_lists  # noqa: F401 - as above
from booking_svc.tables import metadata
from booking_svc.webhooks import tables as _subscriptions  # noqa: F401 - adds its tables
from mesh.db.migrations import run_migrations

run_migrations(metadata)
