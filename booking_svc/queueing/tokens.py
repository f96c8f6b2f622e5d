"""Tickets and admission tokens: signed texts that carry what they say, so that neither is stored.

Base64url of a kind, the fields, and 16 bytes of HMAC-SHA-256. The first key signs, all verify.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

NONCE_BYTES = 8

_MAC_BYTES = 16
_ANONYMOUS, _OF_ACCOUNT, _ADMISSION = 1, 2, 3
_TICKET = struct.Struct(">B16s4sI8s")
_TOKEN = struct.Struct(">B16s16sIQ")
_LENGTHS = {_ANONYMOUS: _TICKET.size, _OF_ACCOUNT: _TICKET.size + 16, _ADMISSION: _TOKEN.size}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A visitor's number. `generation` is of the room, which may be created again.

    `user_id` is the account that joined; None for a visitor without one.
    """

    event_id: UUID
    generation: bytes
    number: int
    nonce: bytes
    user_id: UUID | None


@dataclass(frozen=True, slots=True)
class AdmissionToken:
    event_id: UUID
    user_id: UUID
    number: int
    expire_time: datetime


def generation_of(room_id: UUID) -> bytes:
    """The last bytes, which are random in a UUIDv7."""
    return room_id.bytes[-4:]


class Signer:
    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are texts of 32 characters or more, newest first."""
        self._keys = [hmac.digest(key.encode(), b"boxoffice queue", hashlib.sha256) for key in keys]

    def sign_ticket(self, ticket: Ticket) -> str:
        account = b"" if ticket.user_id is None else ticket.user_id.bytes
        kind = _OF_ACCOUNT if account else _ANONYMOUS
        fields = (ticket.event_id.bytes, ticket.generation, ticket.number, ticket.nonce)
        return self._signed(_TICKET.pack(kind, *fields) + account)

    def read_ticket(self, text: str) -> Ticket | None:
        """The ticket; None if it was not signed here."""
        body = self._verified(text, (_ANONYMOUS, _OF_ACCOUNT))
        if body is None:
            return None
        _, event_id, generation, number, nonce = _TICKET.unpack_from(body)
        account = body[_TICKET.size :]
        return Ticket(
            UUID(bytes=event_id),
            generation,
            number,
            nonce,
            UUID(bytes=account) if account else None,
        )

    def claimed_event(self, text: str) -> UUID | None:
        """The event that a ticket names, although nobody may have signed it; None without one."""
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            return None
        return UUID(bytes=raw[1:17]) if len(raw) >= _TICKET.size else None

    def sign_admission(self, token: AdmissionToken) -> str:
        return self._signed(
            _TOKEN.pack(
                _ADMISSION,
                token.event_id.bytes,
                token.user_id.bytes,
                token.number,
                (token.expire_time - _EPOCH) // _MICROSECOND,
            )
        )

    def read_admission(self, text: str) -> AdmissionToken | None:
        """The token; None if it was not signed here. It may have expired."""
        body = self._verified(text, (_ADMISSION,))
        if body is None:
            return None
        _, event_id, user_id, number, expires = _TOKEN.unpack(body)
        expire_time = _EPOCH + expires * _MICROSECOND
        return AdmissionToken(UUID(bytes=event_id), UUID(bytes=user_id), number, expire_time)

    def _signed(self, body: bytes) -> str:
        mac = hmac.digest(self._keys[0], body, hashlib.sha256)[:_MAC_BYTES]
        return base64.urlsafe_b64encode(body + mac).rstrip(b"=").decode()

    def _verified(self, text: str, kinds: Sequence[int]) -> bytes | None:
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            return None
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not body or body[0] not in kinds or len(body) != _LENGTHS[body[0]]:
            return None
        # One spelling only: base64 has several for the same bytes.
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
            return None
        for key in self._keys:
            if hmac.compare_digest(hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES], mac):
                return body
        return None
