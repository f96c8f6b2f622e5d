"""Idempotent calls of auth_svc: a repeated call returns the stored answer of the first one.

Not for Login and RefreshToken: their answers contain tokens, which are never stored. A repeated
refresh returns the same successor (sessions.py).
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.idempotent import IdempotentWrites, Key, Store
from mesh.rpc.call import idempotency_key

_AnswerT = TypeVar("_AnswerT", bound=Message)

StoreAnswer = Callable[[AsyncConnection, UUID, Message], Awaitable[None]]
"""Stores an answer and the id of its user, in the transaction of the effect."""


class IdempotentCalls:
    """Runs calls once per key. `secret` keys the digests of requests, which contain passwords.

    A key belongs to an `owner`: the caller, or what the request of an anonymous caller names.
    """

    def __init__(self, writes: IdempotentWrites, *, secret: bytes) -> None:
        self._writes = writes
        self._secret = secret

    async def run_once(
        self,
        owner: UUID | str,
        request: Message,
        answer_type: type[_AnswerT],
        effect: Callable[[AsyncConnection], Awaitable[tuple[UUID, _AnswerT]]],
    ) -> _AnswerT:
        """Runs `effect` in a transaction; it returns the id of its user and the answer.

        Raises IDEMPOTENCY_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED and what `effect` raises.
        """

        async def serialised(connection: AsyncConnection) -> tuple[UUID, bytes]:
            user_id, answer = await effect(connection)
            return user_id, answer.SerializeToString()

        key = self._key(owner, request)
        return answer_type.FromString(await self._writes.run_once(key, serialised))

    async def run_steps_once(
        self,
        owner: UUID | str,
        request: Message,
        answer_type: type[_AnswerT],
        write: Callable[[StoreAnswer], Awaitable[_AnswerT]],
    ) -> _AnswerT:
        """As `run_once`, for a write with transactions of its own: it stores its answer itself."""

        async def serialised(store: Store) -> bytes:
            async def store_answer(
                connection: AsyncConnection, user_id: UUID, answer: Message
            ) -> None:
                await store(connection, user_id, answer.SerializeToString())

            return (await write(store_answer)).SerializeToString()

        key = self._key(owner, request)
        return answer_type.FromString(await self._writes.run_steps_once(key, serialised))

    def _key(self, owner: UUID | str, request: Message) -> Key | None:
        text = idempotency_key()
        if text is None:
            return None
        content = request.SerializeToString(deterministic=True)
        owner_digest = self._digest(str(owner).encode()).hex()
        return Key(f"{request.DESCRIPTOR.full_name}:{owner_digest}", text, self._digest(content))

    def _digest(self, content: bytes) -> bytes:
        # Keyed: a password could be guessed from a plain hash of the request.
        return hmac.digest(self._secret, content, hashlib.sha256)
