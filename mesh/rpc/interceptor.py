"""Wraps every served call, in this order:

request id and log line → errors → authentication and policy → validation → deadline → servicer.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import sqlalchemy.exc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from mesh.deadlines import deadline_in
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.observability import metrics, redaction, request_context, tracing
from mesh.rpc import call, field_names, identity
from mesh.rpc.errors import (
    CODES,
    COMMON_REASONS,
    cause_of,
    from_database,
    raise_from_rpc,
    to_status,
)
from mesh.rpc.policy import MAX_IDEMPOTENCY_KEY_LENGTH, Idempotency, MethodPolicy
from mesh.rpc.revocations import Revocations
from mesh.rpc.validation import refuse_unstorable, validate

_log = logging.getLogger("mesh.rpc")

_SERVED = metrics.histogram(
    "rpc_server_seconds", "Duration of served calls.", "rpc", "caller", "code"
)
_STREAMED = metrics.counter("rpc_server_streams", "Ended streams.", "rpc", "caller", "code")
_RUNNING = metrics.gauge("rpc_server_running", "Calls and streams being served.", "rpc")
_REFUSED = metrics.counter("rpc_server_refusals", "Refused calls, by reason.", "rpc", "reason")

_IDEMPOTENCY_HEADERS = ("idempotency-key", "x-idempotency-key")

_Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    # Generic only in its type stubs.
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Handler = grpc.RpcMethodHandler


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of `policies`; other methods (health, reflection) are not wrapped.

    `build_interceptor` in mesh/rpc/server.py ensures that all methods of the contract have one.
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
        self._handlers: dict[str, _Handler | None] = {}
        self._is_ending = False
        self._waiting_streams: set[asyncio.Task[Any]] = set()

    def end_streams(self) -> None:
        """Ends all streams at shutdown; clients resume them at another replica.

        Most never end by themselves and would use up the whole shutdown grace.
        """
        self._is_ending = True
        for task in self._waiting_streams:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            policy = self._policies.get(method)
            if handler is None or policy is None:
                return handler
            handler = self._handlers[method] = self._wrap(handler, policy)
        return handler

    def _wrap(self, handler: _Handler, policy: MethodPolicy) -> _Handler:
        if handler.unary_unary is not None:
            unary: Any = handler.unary_unary

            async def serve(sent: bytes, context: _Context) -> Any:
                with call.counted():
                    async with self._around(handler, sent, context, policy) as request:
                        return await unary(request, context)

            # No deserializer: for malformed bytes the runtime would answer INTERNAL.
            return grpc.unary_unary_rpc_method_handler(serve, None, _serializer(handler))
        stream: Any = handler.unary_stream
        if stream is None:
            raise TypeError(f"{policy.path}: only unary and server-streaming methods are served")

        async def serve_stream(sent: bytes, context: _Context) -> AsyncIterator[Any]:
            async with self._around(handler, sent, context, policy) as request:
                async for response in self._until_ending(stream(request, context)):
                    yield response

        return grpc.unary_stream_rpc_method_handler(serve_stream, None, _serializer(handler))

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

    @asynccontextmanager
    async def _around(
        self, handler: _Handler, sent: bytes, context: _Context, policy: MethodPolicy
    ) -> AsyncIterator[Message]:
        started = time.perf_counter()
        metadata = _text_metadata(context)
        call.begin(request_id=_request_id(metadata), idempotency_key=_idempotency_key(metadata))
        line: dict[str, Any] = {"method": policy.path, "code": "OK"}
        running = _RUNNING.labels(policy.name)
        running.inc()
        attributes = {"request_id": request_context.request_id(), "rpc.method": policy.path}
        # The span of a stream that does not end would grow without bound.
        is_traced = not policy.server_streaming
        # The answer last: who has heard it finds the call in log, metrics and trace.
        async with _answered(context, policy, metadata, line):
            with tracing.serving(policy.name, metadata, attributes, when=is_traced) as span:
                try:
                    with _errors(context, policy, line):
                        await self._authorise(context, policy, metadata, line)
                        request = _read(handler, sent)
                        async with _deadline(context, policy):
                            yield request
                finally:
                    seconds = time.perf_counter() - started
                    running.dec()
                    _count(policy, line, seconds)
                    tracing.ended(span, line["code"])
                    line["duration_ms"] = round(seconds * 1000, 2)
                    _log.info("rpc", extra=line)

    async def _authorise(
        self,
        context: _Context,
        policy: MethodPolicy,
        metadata: Mapping[str, str],
        line: dict[str, Any],
    ) -> None:
        """Authenticates the caller. Raises a DomainError unless the policy allows the call."""
        process = identity.process_of(context.auth_context())
        line["caller"] = process
        caller = await identity.identify(process, metadata, self._jwks)
        if caller.user_id is not None:
            line["user_id"] = str(caller.user_id)
        call.identify(caller)
        if self._revocations is not None:
            self._revocations.check(caller)
        identity.authorise(caller, policy)
        _require_idempotency_key(policy)


def _read(handler: _Handler, sent: bytes) -> Message:
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
    validate(request)
    refuse_unstorable(request, sent)
    return request


def _count(policy: MethodPolicy, line: dict[str, Any], seconds: float) -> None:
    labels = (policy.name, line.get("caller", "unknown"), line["code"])
    if policy.server_streaming:
        # The duration of a stream is the client's choice and no measure of latency.
        _STREAMED.labels(*labels).inc()
    else:
        _SERVED.labels(*labels).observe(seconds)
    if "reason" in line:
        _REFUSED.labels(policy.name, line["reason"]).inc()


def _serializer(handler: _Handler) -> Callable[[Any], bytes]:
    """The handler's serializer; passes through responses that are already serialised, which
    streams with many clients use."""
    serialize: Any = handler.response_serializer
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


@contextmanager
def _errors(context: _Context, policy: MethodPolicy, line: dict[str, Any]) -> Iterator[None]:
    """Converts every error to the DomainError for the client and adds it to the log line."""
    try:
        try:
            yield
        except asyncio.CancelledError:
            line["code"] = "CANCELLED"
            if context.cancelled():
                raise
            # Cancelled by this server's shutdown: the client still needs a status.
            raise _stopping() from None
        except TimeoutError:
            raise DomainError(Reason.DEADLINE_EXCEEDED, "the call's time ran out") from None
        except Exception as error:  # noqa: BLE001 - the outermost handler of a call
            raise _logged_refusal(error, policy, line) from None
    except DomainError as refusal:
        line["reason"] = refusal.reason
        line["code"] = CODES[refusal.reason].name
        raise


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
    if isinstance(error, DomainError):
        return error
    return DomainError(Reason.INTERNAL, "internal error")


@asynccontextmanager
async def _answered(
    context: _Context, policy: MethodPolicy, metadata: Mapping[str, str], line: dict[str, Any]
) -> AsyncIterator[None]:
    """Answers a refusal with its status; names fields as the gateway's client writes them.

    Services get the names of the contract: the one that answers the gateway writes the others.
    """
    try:
        yield
    except DomainError as refusal:
        if line.get("caller") == identity.GATEWAY:
            is_rest = field_names.REST_HEADER in metadata
            refusal = field_names.for_client(refusal, policy.body_field, is_rest=is_rest)
        await context.abort_with_status(_answer(refusal))


def _answer(refusal: DomainError) -> grpc.Status:
    answer = rpc_status.to_status(to_status(refusal))
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


@asynccontextmanager
async def _deadline(context: _Context, policy: MethodPolicy) -> AsyncIterator[None]:
    """Bounds the call by its policy's deadline or the client's, whichever is first.

    A stream is bounded only by the client's.
    """
    client = context.time_remaining()
    if policy.server_streaming:
        seconds = client
    else:
        allowed = policy.deadline_seconds
        seconds = (
            client if allowed is None or (client is not None and client < allowed) else allowed
        )
    with deadline_in(seconds):
        async with asyncio.timeout(seconds):
            yield


def _text_metadata(context: _Context) -> dict[str, str]:
    return {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }


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
            raise invalid(FieldViolation("Idempotency-Key", "the header is required"))
        return
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_LENGTH:
        raise invalid(
            FieldViolation(
                "Idempotency-Key", f"must have 1–{MAX_IDEMPOTENCY_KEY_LENGTH} characters"
            )
        )
