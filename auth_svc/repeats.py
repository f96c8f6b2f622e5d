"""A write that is called again with its Idempotency-Key: one effect, and the first answer.

Translates as a servicer does: what is kept is the answer itself, in the transaction of
the effect. Signing in and refreshing are not among these writes: their answers are
tokens, which are stored nowhere. A repeated refresh returns the same successor anyway
(sessions.py), a repeated sign-in is one session more.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.tables import idempotency_records
from mesh.clock import Clock
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.rpc.call import idempotency_key

_AnswerT = TypeVar("_AnswerT", bound=Message)

Keep = Callable[[AsyncConnection, UUID, Message], Awaitable[None]]
"""Keeps an answer, in the effect's transaction, with the user whom it is about."""


class _OvertakenError(Exception):
    """Another process was first with the same key: its answer holds."""


class Repeats:
    """Answers of writes by their keys. `secret` hides what was asked, passwords among it."""

    def __init__(self, *, database: Database, clock: Clock, secret: bytes) -> None:
        self._database = database
        self._clock = clock
        self._secret = secret

    async def once(
        self,
        owner: UUID | str,
        request: Message,
        answer_type: type[_AnswerT],
        write: Callable[[Keep], Awaitable[_AnswerT]],
    ) -> _AnswerT:
        """The answer of `write`, which calls `keep` before it commits; the first one's if repeated.

        Raises IDEMPOTENCY_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED and what `write` raises.
        """
        text = idempotency_key()
        if text is None:
            return await write(_keep_nothing)
        key = self._key(owner, text, request)

        async def keep(connection: AsyncConnection, user_id: UUID, answer: Message) -> None:
            is_first = await idempotent.claim(
                connection, idempotency_records, key, resource_id=user_id, now=self._clock()
            )
            if not is_first:
                raise _OvertakenError
            response = answer.SerializeToString()
            await idempotent.finish(connection, idempotency_records, key, response=response)

        async with idempotent.running(key):
            kept = await self._find(key, answer_type)
            if kept is not None:
                return kept
            try:
                return await write(keep)
            except (_OvertakenError, DomainError):
                # Refused perhaps because the other one did it already.
                kept = await self._find(key, answer_type)
                if kept is None:
                    raise
                return kept

    async def _find(self, key: idempotent.Key, answer_type: type[_AnswerT]) -> _AnswerT | None:
        async with self._database.reading() as connection:
            record = await idempotent.find(connection, idempotency_records, key)
        if record is None:
            return None
        if record.response is None:
            raise DomainError(Reason.INTERNAL, "an answer was not kept")
        return answer_type.FromString(record.response)

    def _key(self, owner: UUID | str, text: str, request: Message) -> idempotent.Key:
        content = request.SerializeToString(deterministic=True)
        # Keyed: a plain hash of a request with a password in it could be guessed at.
        whose = self._digest(str(owner).encode()).hex()
        return idempotent.Key(
            f"{request.DESCRIPTOR.full_name}:{whose}", text, self._digest(content)
        )

    def _digest(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, hashlib.sha256)


async def _keep_nothing(_: AsyncConnection, __: UUID, ___: Message) -> None:
    return
