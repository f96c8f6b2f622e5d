"""auth_svc's tables. Each invariant is a named constraint.

Rows of users are never deleted: bookings and payments refer to them.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import UUID

from mesh.db.database import NAMING
from mesh.db.idempotent import idempotency_table
from mesh.db.outbox import outbox_table
from mesh.mail.queue import mail_table

metadata = sa.MetaData(naming_convention=NAMING)

_Uuid = UUID(as_uuid=True)
_Time = sa.DateTime(timezone=True)

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", _Uuid, primary_key=True),
    sa.Column("email", sa.Text, nullable=False),
    # The form in which addresses are compared; `email` is stored as entered.
    sa.Column("email_key", sa.Text, nullable=False, unique=True),
    sa.Column("full_name", sa.Text, nullable=False),
    sa.Column("phone", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),
    sa.Column("password_hash", sa.Text, nullable=False),
    # Distinguishes a new password from a new hash of the same password.
    sa.Column("password_change_time", _Time, nullable=False),
    # Access tokens with a lower version are revoked.
    sa.Column("access_version", sa.Integer, nullable=False, server_default="0"),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False),
    # When the user proved to receive mails at the address.
    sa.Column("email_verify_time", _Time),
    # When the account was deleted; the row stays.
    sa.Column("delete_time", _Time),
    # When the personal data was erased; the row stays.
    sa.Column("erase_time", _Time),
    sa.CheckConstraint("char_length(email) BETWEEN 3 AND 254", name="email"),
    sa.CheckConstraint("email_key = lower(email_key)", name="email_key"),
    sa.CheckConstraint("char_length(full_name) BETWEEN 1 AND 100", name="full_name"),
    sa.CheckConstraint(r"phone = '' OR phone ~ '^\+[1-9][0-9]{7,14}$'", name="phone"),
    sa.CheckConstraint("char_length(address) <= 500", name="address"),
    sa.CheckConstraint("role IN ('CUSTOMER', 'STAFF', 'ADMIN')", name="role"),
    sa.CheckConstraint("password_hash LIKE '$2b$%'", name="password_hash"),
    sa.CheckConstraint("update_time >= create_time", name="update_time"),
    sa.CheckConstraint("delete_time IS NULL OR NOT is_active", name="delete_time"),
)

# A session is a family of refresh tokens: each replaces the previous one; all end with the session.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", _Uuid, primary_key=True),
    sa.Column("user_id", _Uuid, sa.ForeignKey("users.user_id"), nullable=False, index=True),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    sa.Column("revoke_time", _Time),
    sa.CheckConstraint("expire_time > create_time", name="expire_time"),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    # The token itself is not stored: a copy of this table does not allow sign-in.
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column(
        "session_id", _Uuid, sa.ForeignKey("sessions.session_id"), nullable=False, index=True
    ),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    sa.Column("use_time", _Time),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
    sa.CheckConstraint("expire_time > create_time", name="expire_time"),
    # A session has at most one unused token: two clients cannot continue it independently.
    sa.Index(
        "refresh_tokens_unused_idx",
        "session_id",
        unique=True,
        postgresql_where=sa.text("use_time IS NULL"),
    ),
)

# Keys of machines. A row stays after its end, for the list of admins.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("api_key_id", _Uuid, primary_key=True),
    # The key itself is not stored.
    sa.Column("key_hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("key_start", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("creator_id", _Uuid, sa.ForeignKey("users.user_id"), nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False),
    sa.Column("revoke_time", _Time),
    sa.Column("last_use_time", _Time),
    sa.CheckConstraint("octet_length(key_hash) = 32", name="key_hash"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="name"),
    sa.CheckConstraint("role IN ('CUSTOMER', 'STAFF', 'ADMIN')", name="role"),
    sa.CheckConstraint("expire_time > create_time", name="expire_time"),
)

outbox = outbox_table(metadata)
# The revocation stream starts at a time; housekeeping deletes by time and by account.
sa.Index("outbox_create_time_idx", outbox.c.create_time)
sa.Index("outbox_aggregate_id_idx", outbox.c.aggregate_id)

mails = mail_table(metadata)

idempotency_records = idempotency_table(metadata)

# Requests for a new password; the background loop looks up whether the address has an account.
password_reset_requests = sa.Table(
    "password_reset_requests",
    metadata,
    sa.Column("email_key", sa.Text, primary_key=True),
    sa.Column("create_time", _Time, nullable=False),
)

password_resets = sa.Table(
    "password_resets",
    metadata,
    # The token itself is only in the mail.
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("user_id", _Uuid, sa.ForeignKey("users.user_id"), nullable=False, index=True),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False, index=True),
    sa.Column("use_time", _Time),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
    sa.CheckConstraint("expire_time > create_time", name="expire_time"),
)

# Requests to mail the verification link again.
email_verification_requests = sa.Table(
    "email_verification_requests",
    metadata,
    sa.Column("email_key", sa.Text, primary_key=True),
    sa.Column("create_time", _Time, nullable=False),
)

# Links that prove who reads the mailbox of an address: the account's own, or its next one.
email_confirmations = sa.Table(
    "email_confirmations",
    metadata,
    # The token itself is only in the mail.
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    sa.Column("user_id", _Uuid, sa.ForeignKey("users.user_id"), nullable=False, index=True),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("create_time", _Time, nullable=False),
    sa.Column("expire_time", _Time, nullable=False, index=True),
    sa.Column("use_time", _Time),
    sa.CheckConstraint("octet_length(token_hash) = 32", name="token_hash"),
    sa.CheckConstraint("char_length(email) BETWEEN 3 AND 254", name="email"),
    sa.CheckConstraint("expire_time > create_time", name="expire_time"),
    # The newest link to an address is the only one that works.
    sa.Index(
        "email_confirmations_unused_idx",
        "user_id",
        "email",
        unique=True,
        postgresql_where=sa.text("use_time IS NULL"),
    ),
)

# Addresses from which the owner signed in. Strangers' attempts do not delay sign-ins from them.
sign_in_addresses = sa.Table(
    "sign_in_addresses",
    metadata,
    sa.Column("user_id", _Uuid, sa.ForeignKey("users.user_id"), primary_key=True),
    # A keyed digest: the address itself is not stored.
    sa.Column("address", sa.LargeBinary, primary_key=True),
    sa.Column("last_time", _Time, nullable=False, index=True),
    sa.CheckConstraint("octet_length(address) = 32", name="address"),
)

# Attempts to sign in while Redis is away. Accounts as hashes, of those that do not exist too.
login_throttles = sa.Table(
    "login_throttles",
    metadata,
    sa.Column("account", sa.LargeBinary, primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_time", _Time, nullable=False),
    sa.Column("update_time", _Time, nullable=False, index=True),
    sa.CheckConstraint("octet_length(account) = 32", name="account"),
    sa.CheckConstraint("attempts >= 0", name="attempts"),
)
