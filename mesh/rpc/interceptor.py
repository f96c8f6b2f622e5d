"""What happens around every served call, in one place and in this order:

request id and log line → errors → identity and policy → validation → deadline → servicer.
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
from mesh.rpc.policy import Idempotency, MethodPolicy
from mesh.rpc.revocations import Revocations
from mesh.rpc.validation import refuse_unreal, validate

_log = logging.getLogger("mesh.rpc")

_SERVED = metrics.histogram(
    "rpc_server_seconds", "Duration of served calls.", "rpc", "caller", "code"
)
_STREAMED = metrics.counter("rpc_server_streams", "Streams that ended.", "rpc", "caller", "code")
_RUNNING = metrics.gauge("rpc_server_running", "Calls being served.", "rpc")
_REFUSED = metrics.counter("rpc_server_refusals", "Calls refused, by reason.", "rpc", "reason")

_IDEMPOTENCY_HEADERS = ("idempotency-key", "x-idempotency-key")
_MAX_KEY_LENGTH = 128

_Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    # Generic in its type stubs only.
    _Handler = grpc.RpcMethodHandler[Any, Any]
else:
    _Handler = grpc.RpcMethodHandler


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods that have a policy; health and reflection pass through.

    The server refuses to start with a method that has none (mesh/rpc/server.py).
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
        """Ends the streams of a process that stops; all can be resumed elsewhere.

        Most have no end of their own and would keep the process for its whole grace.
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

            # No deserializer: to bytes that are no message the runtime would answer INTERNAL.
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
            # Cancelled only while it waits for what comes next: cancelled while grpc.aio
            # sends an answer, its client would hear no status.
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
        # A stream without end would gather spans without end.
        is_traced = not policy.server_streaming
        # The answer last: who has heard it finds the call in log, metrics and trace.
        async with _answered(context, policy, metadata, line):
            with tracing.serving(policy.name, metadata, attributes, when=is_traced) as span:
                try:
                    with _errors(context, policy, line):
                        await self._admit(context, policy, metadata, line)
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

    async def _admit(
        self,
        context: _Context,
        policy: MethodPolicy,
        metadata: Mapping[str, str],
        line: dict[str, Any],
    ) -> None:
        """Raises unless the caller may."""
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
    """The request. Raises VALIDATION_FAILED for bytes that are none, and for broken rules."""
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
    refuse_unreal(request, sent)
    return request


def _count(policy: MethodPolicy, line: dict[str, Any], seconds: float) -> None:
    labels = (policy.name, line.get("caller", "unknown"), line["code"])
    if policy.server_streaming:
        # How long a client watches says nothing of how fast we are.
        _STREAMED.labels(*labels).inc()
    else:
        _SERVED.labels(*labels).observe(seconds)
    if "reason" in line:
        _REFUSED.labels(policy.name, line["reason"]).inc()


def _serializer(handler: _Handler) -> Callable[[Any], bytes]:
    """The handler's own, but an answer that is sent to thousands comes serialised already."""
    serialize: Any = handler.response_serializer
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


@contextmanager
def _errors(context: _Context, policy: MethodPolicy, line: dict[str, Any]) -> Iterator[None]:
    """Makes every error the DomainError that the client gets to know, and notes it in `line`."""
    try:
        try:
            yield
        except asyncio.CancelledError:
            line["code"] = "CANCELLED"
            if context.cancelled():
                raise
            # Cancelled by this server's own shutdown: the client must hear something.
            raise _stopping() from None
        except TimeoutError:
            raise DomainError(Reason.DEADLINE_EXCEEDED, "the call's time ran out") from None
        except Exception as error:  # noqa: BLE001 - the one place that sees every bug
            raise _noted_refusal(error, policy, line) from None
    except DomainError as refusal:
        line["reason"] = refusal.reason
        line["code"] = CODES[refusal.reason].name
        raise


def _noted_refusal(error: Exception, policy: MethodPolicy, line: dict[str, Any]) -> DomainError:
    """What the client gets to know of an error; what operators need to know besides is logged."""
    refusal = _refusal(error)
    if refusal.reason is Reason.INTERNAL:
        _log.exception("a call failed by a bug", extra={"method": policy.path})
    elif isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        # Not of a bug: what the database says of a wrong value repeats the value.
        line["cause"] = cause_of(error)
    elif refusal.reason not in COMMON_REASONS and refusal.reason not in policy.reasons:
        _log.error(
            "a method answered with a reason that its policy does not name",
            extra={"method": policy.path, "reason": refusal.reason},
        )
    return refusal


def _stopping() -> DomainError:
    return DomainError(
        Reason.DEPENDENCY_UNAVAILABLE, "the service is stopping", retry_after_seconds=1
    )


def _refusal(error: Exception) -> DomainError:
    """What the client gets to know of an error."""
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
        # RFC 6750 section 3: says how to sign in, over gRPC as over REST.
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
    """Ends the call at its policy's deadline or at the client's, whichever is first."""
    theirs = context.time_remaining()
    if policy.server_streaming:
        seconds = theirs
    else:
        ours = policy.deadline_seconds
        seconds = theirs if ours is None or (theirs is not None and theirs < ours) else ours
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
    if not 0 < len(key) <= _MAX_KEY_LENGTH:
        raise invalid(
            FieldViolation("Idempotency-Key", f"must have 1–{_MAX_KEY_LENGTH} characters")
        )
