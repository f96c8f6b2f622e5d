"""The work around every served call, in this order:

request id and log line → errors → authentication and policy → validation → deadline → servicer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import grpc
import sqlalchemy.exc
from google.protobuf.message import DecodeError, Message

from mesh.deadlines import set_deadline
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.observability import logs, metrics, redaction, request_context, tracing
from mesh.outages import cause_of, from_database
from mesh.rpc import call, field_names, identity
from mesh.rpc.errors import (
    CODES,
    COMMON_REASONS,
    raise_from_rpc,
    to_grpc,
    with_wait,
)
from mesh.rpc.policy import MAX_IDEMPOTENCY_KEY_LENGTH, Access, Idempotency, MethodPolicy
from mesh.rpc.revocations import Revocations
from mesh.rpc.validation import refuse_unstorable, validate

_log = logging.getLogger(logs.CALLS)

_SERVED = metrics.histogram(
    "rpc_server_seconds", "Duration of served calls.", "rpc", "caller", "code"
)
_STREAMED = metrics.counter("rpc_server_streams", "Ended streams.", "rpc", "caller", "code")
_RUNNING = metrics.gauge("rpc_server_running", "Calls and streams being served.", "rpc")
_REFUSED = metrics.counter("rpc_server_refusals", "Refused calls, by reason.", "rpc", "reason")

_REPLAYED = (("idempotent-replayed", "true"),)
_IDEMPOTENCY_HEADERS = ("idempotency-key", "x-idempotency-key")

_metadata: ContextVar[Iterable[tuple[str, str | bytes]] | None] = ContextVar("metadata")

_Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    # Generic only in its type stubs.
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Handler = grpc.RpcMethodHandler


class Interceptor:
    """Wraps the methods of `policies`, once, when they are registered.

    Other methods (health, reflection) are not wrapped. `build_interceptor` in mesh/rpc/server.py
    ensures that all methods of the contract have a policy.
    """

    def __init__(
        self,
        policies: Mapping[str, MethodPolicy],
        jwks: identity.Jwks,
        revocations: Revocations | None = None,
    ) -> None:
        self._policies = policies
        self._jwks = jwks
        self._revocations = revocations
        self._is_ending = False
        self._waiting_streams: set[asyncio.Task[Any]] = set()

    def wrap(self, handlers: Mapping[str, _Handler]) -> grpc.GenericRpcHandler:
        """The methods, by gRPC path, as one handler for `add_generic_rpc_handlers`."""
        wrapped = {}
        for path, handler in handlers.items():
            policy = self._policies.get(path)
            wrapped[path] = handler if policy is None else self._wrap(handler, policy)
        return _Methods(wrapped)

    def end_streams(self) -> None:
        """Ends all streams at shutdown; clients resume them at another replica.

        Most never end by themselves and would use up the whole shutdown grace.
        """
        self._is_ending = True
        for task in self._waiting_streams:
            task.cancel()

    def _wrap(self, handler: _Handler, policy: MethodPolicy) -> _Handler:
        if handler.unary_unary is not None:
            # No deserializer: for malformed bytes the runtime would answer INTERNAL.
            return grpc.unary_unary_rpc_method_handler(self._unary(handler, policy), None, None)
        if handler.unary_stream is None:
            raise TypeError(f"{policy.path}: only unary and server-streaming methods are served")
        return grpc.unary_stream_rpc_method_handler(self._stream(handler, policy), None, None)

    # Each is one flat function, because it runs for every call (docs/performance.md).

    def _unary(
        self, handler: _Handler, policy: MethodPolicy
    ) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        respond: Any = handler.unary_unary
        serialize: Any = handler.response_serializer
        method = _Method(policy)
        allowed = policy.deadline_seconds

        async def serve(sent: bytes, context: _Context) -> bytes:
            with _Call(method, context) as served:
                await self._authorise(context, served)
                request = _read(handler, sent, policy)
                seconds = context.time_remaining()
                if seconds is None or (allowed is not None and allowed < seconds):
                    seconds = allowed
                set_deadline(seconds)
                async with asyncio.timeout(seconds):
                    answer = await respond(request, context)
                if call.is_replayed():
                    await context.send_initial_metadata(_REPLAYED)
                # An answer for many clients is already serialised.
                return answer if isinstance(answer, bytes) else serialize(answer)
            return await served.abort()

        return serve

    def _stream(
        self, handler: _Handler, policy: MethodPolicy
    ) -> Callable[[bytes, _Context], AsyncIterator[bytes]]:
        respond: Any = handler.unary_stream
        serialize: Any = handler.response_serializer
        method = _Method(policy)

        async def serve(sent: bytes, context: _Context) -> AsyncIterator[bytes]:
            with _Call(method, context) as served:
                await self._authorise(context, served)
                request = _read(handler, sent, policy)
                # Bounded only by the client's deadline.
                seconds = context.time_remaining()
                set_deadline(seconds)
                async with asyncio.timeout(seconds):
                    async for answer in self._until_ending(respond(request, context)):
                        yield answer if isinstance(answer, bytes) else serialize(answer)
                return
            await served.abort()

        return serve

    async def _until_ending(self, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("served outside of a task")
        while not self._is_ending:
            # `end_streams` may cancel only a wait for the next response: when grpc.aio is
            # cancelled while it sends one, the client gets no status.
            self._waiting_streams.add(task)
            try:
                response = await anext(responses)
            except StopAsyncIteration:
                return
            finally:
                self._waiting_streams.discard(task)
            yield response
        raise _stopping()

    async def _authorise(self, context: _Context, served: "_Call") -> None:
        """Authenticates the caller. Raises a DomainError unless the policy allows the call."""
        process = identity.process_of(
            context.peer_identity_key(), tuple(context.peer_identities() or ())
        )
        served.line["caller"] = process
        caller = await identity.identify(process, served.metadata, self._jwks)
        if caller.user_id is not None:
            served.line["user_id"] = str(caller.user_id)
        call.identify(caller)
        policy = served.method.policy
        if self._revocations is not None and not policy.accepts_ended_token:
            self._revocations.check(caller)
        identity.authorise(caller, policy)
        _require_idempotency_key(policy)


class _Methods(grpc.GenericRpcHandler):
    """Methods by gRPC path. Keeps the metadata, which the runtime converts anew for each reader."""

    def __init__(self, handlers: Mapping[str, _Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        # In the task that then serves the call.
        _metadata.set(handler_call_details.invocation_metadata)
        return self._handlers.get(handler_call_details.method)


def _read(handler: _Handler, sent: bytes, policy: MethodPolicy) -> Message:
    """Parses and validates the request. Raises VALIDATION_FAILED."""
    deserialize: Any = handler.request_deserializer
    try:
        request: Message = deserialize(sent)
    except DecodeError:
        raise DomainError(
            Reason.VALIDATION_FAILED, "the request is not the message that this method takes"
        ) from None
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("request", extra={"request": redaction.shown(request)})
    validate(request, is_internal=policy.access is Access.INTERNAL)
    refuse_unstorable(request, sent)
    return request


class _Method:
    """A method with its metrics. The values of `labels()` are kept: looking them up is slow."""

    def __init__(self, policy: MethodPolicy) -> None:
        self.policy = policy
        self.running = _RUNNING.labels(policy.name)
        self._served: dict[tuple[str, str], metrics.Histogram] = {}

    def count(self, caller: str, code: str, seconds: float) -> None:
        if self.policy.server_streaming:
            # The duration of a stream is the client's choice and no measure of latency.
            _STREAMED.labels(self.policy.name, caller, code).inc()
            return
        served = self._served.get((caller, code))
        if served is None:
            served = self._served[caller, code] = _SERVED.labels(self.policy.name, caller, code)
        served.observe(seconds)


class _Call:
    """A call that is being served, as a context manager around all of its work.

    At the end it counts and logs the call and keeps the refusal of a failed one for `abort`. That
    answer comes last: a client that has it finds the call in metrics, log and trace.
    """

    __slots__ = (
        "_context",
        "_refusal",
        "_span",
        "_started",
        "_tracing",
        "line",
        "metadata",
        "method",
    )

    def __init__(self, method: _Method, context: _Context) -> None:
        self._started = time.perf_counter()
        self._context = context
        self._refusal: DomainError | None = None
        self.method = method
        self.line: dict[str, Any] = {"method": method.policy.path, "code": "OK"}
        pairs = _metadata.get() or ()
        self.metadata = {key: value for key, value in pairs if isinstance(value, str)}

    def __enter__(self) -> Self:
        policy, metadata = self.method.policy, self.metadata
        call.begin(request_id=_request_id(metadata), idempotency_key=_idempotency_key(metadata))
        self.method.running.inc()
        if not policy.server_streaming:
            call.count(1)
        attributes = {"request_id": request_context.request_id(), "rpc.method": policy.path}
        # The span of a stream that does not end would grow without bound.
        is_traced = not policy.server_streaming
        self._tracing = tracing.serving(policy.name, metadata, attributes, when=is_traced)
        self._span = self._tracing.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Suppresses what `abort` answers: all except a cancellation by the client."""
        if isinstance(error, asyncio.CancelledError):
            self.line["code"] = "CANCELLED"
            if not self._context.cancelled():
                # Cancelled by this server's shutdown: the client still needs a status.
                self._refuse(_stopping())
        elif isinstance(error, Exception):
            self._refuse(_logged_refusal(error, self.method.policy, self.line))
        self._count()
        tracing.ended(self._span, self.line["code"])
        _log.info("rpc", extra=self.line)
        self._tracing.__exit__(None, None, None)
        return self._refusal is not None

    def _refuse(self, refusal: DomainError) -> None:
        self._refusal = refusal
        self.line["reason"] = refusal.reason
        self.line["code"] = CODES[refusal.reason].name

    def _count(self) -> None:
        seconds = time.perf_counter() - self._started
        line, method = self.line, self.method
        line["duration_ms"] = round(seconds * 1000, 2)
        method.running.dec()
        if not method.policy.server_streaming:
            call.count(-1)
        method.count(line.get("caller", "unknown"), line["code"], seconds)
        if self._refusal is not None:
            _REFUSED.labels(method.policy.name, self._refusal.reason).inc()

    async def abort(self) -> NoReturn:
        """Answers the refusal with its status; names fields as the gateway's client writes them.

        Services get the names of the contract: the one that answers the gateway writes the others.
        """
        refusal = self._refusal
        if refusal is None:
            raise RuntimeError("the call was not refused")
        if self.line.get("caller") == identity.GATEWAY:
            is_rest = field_names.REST_HEADER in self.metadata
            refusal = with_wait(
                field_names.for_client(refusal, self.method.policy.body_field, is_rest=is_rest)
            )
        await self._context.abort_with_status(_answer(refusal))
        raise AssertionError("abort_with_status raises")


def _logged_refusal(error: Exception, policy: MethodPolicy, line: dict[str, Any]) -> DomainError:
    """The DomainError for the client; logs what operators need to know about the error."""
    refusal = _refusal(error)
    if refusal.reason is Reason.INTERNAL:
        _log.exception("a call failed because of a bug", extra={"method": policy.path})
    elif isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        # Only for a busy or unavailable database: messages of other errors quote values.
        line["cause"] = cause_of(error)
    elif refusal.reason not in COMMON_REASONS and refusal.reason not in policy.reasons:
        _log.error(
            "a method failed with a reason that its policy does not list",
            extra={"method": policy.path, "reason": refusal.reason},
        )
    return refusal


def _stopping() -> DomainError:
    return DomainError(
        Reason.DEPENDENCY_UNAVAILABLE, "the service is stopping", retry_after_seconds=1
    )


def _refusal(error: Exception) -> DomainError:
    """The DomainError for the client."""
    if isinstance(error, grpc.aio.AioRpcError):
        try:
            raise_from_rpc(error)
        except DomainError as known:
            return known
        except grpc.aio.AioRpcError:
            pass
    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        known_database = from_database(error)
        if known_database is not None:
            return known_database
    if isinstance(error, TimeoutError):
        return DomainError(Reason.DEADLINE_EXCEEDED, "the call's time ran out")
    if isinstance(error, DomainError):
        return error
    return DomainError(Reason.INTERNAL, "internal error")


def _answer(refusal: DomainError) -> grpc.Status:
    answer = to_grpc(refusal)
    if CODES[refusal.reason] is grpc.StatusCode.UNAUTHENTICATED:
        # RFC 6750 section 3, over gRPC as over REST.
        challenge = _CHALLENGE if refusal.reason in _NOT_ABOUT_TOKENS else _CHALLENGE_TOKEN
        answer = answer._replace(  # type: ignore[attr-defined]  # a named tuple
            trailing_metadata=(*answer.trailing_metadata, ("www-authenticate", challenge))
        )
    return answer


_CHALLENGE = 'Bearer realm="boxoffice"'
_CHALLENGE_TOKEN = f'{_CHALLENGE}, error="invalid_token"'
_NOT_ABOUT_TOKENS = frozenset({Reason.INVALID_CREDENTIALS, Reason.WEBHOOK_SIGNATURE_INVALID})


def _request_id(metadata: Mapping[str, str]) -> str:
    given = metadata.get(request_context.REQUEST_ID_HEADER, "")
    return given if 0 < len(given) <= request_context.MAX_REQUEST_ID_LENGTH else str(new_id())


def _idempotency_key(metadata: Mapping[str, str]) -> str | None:
    for header in _IDEMPOTENCY_HEADERS:
        if header in metadata:
            return metadata[header]
    return None


def _require_idempotency_key(policy: MethodPolicy) -> None:
    if policy.idempotency is Idempotency.IGNORED:
        return
    key = call.idempotency_key()
    if key is None:
        if policy.idempotency is Idempotency.REQUIRED:
            raise invalid(FieldViolation("Idempotency-Key", "the header is required", "required"))
        return
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise invalid(
            FieldViolation(
                "Idempotency-Key",
                f"must have 1–{MAX_IDEMPOTENCY_KEY_LENGTH} characters",
                "string.len",
            )
        )
