"""Idempotent calls of auth_svc: the stored answer is the message that the client got.

Login and RefreshToken are not among them: their answers are tokens, which are stored
nowhere. A repeated refresh returns the same successor anyway (sessions.py).
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

Keep = Callable[[AsyncConnection, UUID, Message], Awaitable[None]]
"""Stores an answer and the user it is about, in the transaction of the effect."""


class IdempotentCalls:
    """Runs calls once per key. `secret` keys the stored digest of requests with passwords."""

    def __init__(self, writes: IdempotentWrites, *, secret: bytes) -> None:
        self._writes = writes
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

        async def serialised(store: Store) -> bytes:
            async def keep(connection: AsyncConnection, user_id: UUID, answer: Message) -> None:
                await store(connection, user_id, answer.SerializeToString())

            return (await write(keep)).SerializeToString()

        text = idempotency_key()
        key = None if text is None else self._key(owner, text, request)
        return answer_type.FromString(await self._writes.run_steps_once(key, serialised))

    def _key(self, owner: UUID | str, text: str, request: Message) -> Key:
        content = request.SerializeToString(deterministic=True)
        # Keyed: a plain hash of a request with a password in it could be guessed.
        owner_digest = self._digest(str(owner).encode()).hex()
        return Key(f"{request.DESCRIPTOR.full_name}:{owner_digest}", text, self._digest(content))

    def _digest(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, hashlib.sha256)
