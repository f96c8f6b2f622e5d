"""Metadata and tables that all packages of booking_svc share. Each package has its own tables.py."""

import sqlalchemy as sa

from mesh.db.consumer import cursor_table
from mesh.db.database import NAMING
from mesh.db.idempotent import idempotency_table
from mesh.db.outbox import outbox_table

metadata = sa.MetaData(naming_convention=NAMING)

event_cursors = cursor_table(metadata)
idempotency_records = idempotency_table(metadata)

# Domain events: catalogue/outbox.py and bookings/outbox.py.
outbox = outbox_table(metadata)
