"""Tables of mails to customers."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from booking_svc.tables import metadata
from mesh.mail.queue import mail_table

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

# Booking events that wait for their customer's address. Named waiting_letters in the database.
mails_without_address = sa.Table(
    "waiting_letters",
    metadata,
    sa.Column("event_key", _Uuid, primary_key=True),
    sa.Column("user_id", _Uuid, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Index("waiting_letters_user_id_idx", "user_id"),
)
mails = mail_table(metadata)
