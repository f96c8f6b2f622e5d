"""Decides whose attempts to sign in count together, so that strangers cannot lock an account.

An address or device from which the owner signed in before has a count of its own for this account.
All other addresses share the account's count, and each has a count over all accounts.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import Credentials
from auth_svc.tables import sign_in_addresses
from auth_svc.throttle import PER_ACCOUNT, Allowance, LoginThrottle
from mesh.errors import DomainError

ADDRESS_RETENTION = timedelta(days=90)
"""How long an address stays known after the last sign-in from it."""

MAX_ADDRESSES = 20
"""Known addresses of an account; the oldest are forgotten."""

PER_ADDRESS = Allowance(free_attempts=50, max_pause=timedelta(minutes=1))
"""Over all accounts. Thousands of people can share an address: the pauses stay short."""

# A success on a shared address uncounts its own attempt and some typing errors of others.
_RETURNED_BY_SUCCESS = 10

_DEVICE_ID_BYTES = 16
_DIGEST_BYTES = 32
_NO_USER = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an attempt comes from: the client's address, and the device token that it sent."""

    address: str = ""
    device_token: str = ""


NO_SOURCE = Source()


@dataclass(frozen=True, slots=True)
class Attempt:
    """An admitted attempt and the subjects that it counts for."""

    source: Source
    subject: str
    counted_address: str = ""


class SignInGuard:
    """Admits and remembers. `key` is the key of the digests of addresses and of device tokens."""

    def __init__(self, throttle: LoginThrottle, *, key: bytes) -> None:
        self._throttle = throttle
        self._key = key

    async def is_known(
        self,
        connection: AsyncConnection,
        credentials: Credentials | None,
        source: Source,
        *,
        now: datetime,
    ) -> bool:
        """Whether the owner signed in from this address before."""
        # Looked up for unknown accounts too: the time must not tell which accounts exist.
        user_id = _NO_USER if credentials is None else credentials.user_id
        known = sign_in_addresses.c
        last_time = await connection.scalar(
            sa.select(known.last_time).where(
                known.user_id == user_id,
                known.address == self._address_digest(user_id, source.address),
            )
        )
        return last_time is not None and last_time > now - ADDRESS_RETENTION

    async def admit(
        self,
        account: str,
        credentials: Credentials | None,
        source: Source,
        *,
        is_known: bool,
        now: datetime,
    ) -> Attempt:
        """Counts an attempt on the account with this e-mail key. Raises LOGIN_THROTTLED.

        Not in a transaction: without Redis the counts open their own.
        """
        device = self._device_of(source.device_token, credentials)
        if device is None and not is_known:
            return await self._admit_stranger(account, source, now=now)
        known = f"address {source.address}" if device is None else f"device {device}"
        attempt = Attempt(source, f"{known} of {account}")
        await self._throttle.admit(attempt.subject, now=now)
        return attempt

    async def refund(self, attempt: Attempt) -> None:
        """Uncounts an attempt whose password was not verified."""
        await self._throttle.refund_attempt(attempt.subject)
        if attempt.counted_address:
            await self._throttle.refund_attempt(attempt.counted_address)

    async def remember(
        self, connection: AsyncConnection, *, user_id: UUID, address: str, now: datetime
    ) -> None:
        """Makes an address known for an account, after its owner has shown to be there."""
        if not address:
            return
        known, digest = sign_in_addresses.c, self._address_digest(user_id, address)
        await connection.execute(
            postgresql.insert(sign_in_addresses)
            .values(user_id=user_id, address=digest, last_time=now)
            .on_conflict_do_update(
                index_elements=[known.user_id, known.address],
                set_={"last_time": sa.func.greatest(known.last_time, now)},
            )
        )
        beyond = (
            sa.select(known.address)
            .where(known.user_id == user_id)
            .order_by(known.last_time.desc())
            .offset(MAX_ADDRESSES)
        )
        await connection.execute(
            sa.delete(sign_in_addresses).where(known.user_id == user_id, known.address.in_(beyond))
        )

    async def clear_rows(
        self, connection: AsyncConnection, attempt: Attempt, *, user_id: UUID, now: datetime
    ) -> None:
        """After a success, in its transaction: remembers the address, deletes counts in the database."""
        await self.remember(connection, user_id=user_id, address=attempt.source.address, now=now)
        await self._throttle.clear_row(connection, attempt.subject)

    async def clear(self, attempt: Attempt) -> None:
        """After the transaction of a success: deletes the counts in the cache."""
        await self._throttle.clear(attempt.subject)
        if attempt.counted_address:
            await self._throttle.refund_attempt(
                attempt.counted_address, attempts=_RETURNED_BY_SUCCESS
            )

    def device_token(self, credentials: Credentials, source: Source) -> str:
        """The token for the next sign-in on the same device; the one that was sent if it is valid."""
        if self._device_of(source.device_token, credentials) is not None:
            return source.device_token
        device_id = secrets.token_bytes(_DEVICE_ID_BYTES)
        token = device_id + self._device_digest(device_id, credentials)
        return base64.urlsafe_b64encode(token).decode().rstrip("=")

    async def _admit_stranger(self, account: str, source: Source, *, now: datetime) -> Attempt:
        counted = f"address {source.address}" if source.address else ""
        if counted:
            await self._throttle.admit(counted, now=now, allowance=PER_ADDRESS)
        try:
            await self._throttle.admit(account, now=now, allowance=PER_ACCOUNT)
        except DomainError:
            if counted:
                await self._throttle.refund_attempt(counted)
            raise
        return Attempt(source, account, counted)

    def _device_of(self, token: str, credentials: Credentials | None) -> str | None:
        """The id of the device that a valid token of this account names."""
        if not token or credentials is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            return None
        device_id, digest = raw[:_DEVICE_ID_BYTES], raw[_DEVICE_ID_BYTES:]
        if len(digest) != _DIGEST_BYTES:
            return None
        is_ours = hmac.compare_digest(digest, self._device_digest(device_id, credentials))
        return device_id.hex() if is_ours else None

    def _device_digest(self, device_id: bytes, credentials: Credentials) -> bytes:
        # With the time of the last change: a new password ends the tokens of a thief.
        change = credentials.password_change_time.isoformat().encode()
        return self._digest(b"device", device_id + credentials.user_id.bytes + change)

    def _address_digest(self, user_id: UUID, address: str) -> bytes:
        # With the account: the table does not tell which accounts share an address.
        return self._digest(b"address", user_id.bytes + address.encode())

    def _digest(self, purpose: bytes, content: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + content, hashlib.sha256)
