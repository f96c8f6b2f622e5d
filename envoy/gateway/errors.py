"""What Envoy answers by itself, in the shape of every other error.

The first of _REPLIES whose condition holds gives reason, message and status. It is
written here as JSON for REST clients; lua/replies.lua turns it into grpc-status with
google.rpc details for gRPC clients and adds what only the single reply knows.
"""

import base64
from dataclasses import dataclass

import grpc

from gateway.extension import Config, typed
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import CODES, DOMAIN, to_status
from mesh.rpc.identity import REFRESH_TOKEN_LENGTH

COMPRESSIONS = ("identity", "deflate", "gzip")
"""What gRPC's runtime in the services can read, as `grpc-encoding` names it."""
UNKNOWN_COMPRESSION = "unknown_compression"
"""The rule of listener.py that refuses the others."""

# Read and removed by lua/replies.lua.
_CODE_HEADER = "x-boxoffice-code"
_MESSAGE_HEADER = "x-boxoffice-message"
_STATUS_HEADER = "x-boxoffice-status"
_REQUEST_HEADER = "x-boxoffice-request"
_DETAILS_HEADER = "grpc-status-details-bin"

_NO_SUCH_VERB = "this path has no such method; Allow lists those that it has"
_ENVOYS_TEXT = "%LOCAL_REPLY_BODY%"
_AUTHENTICATE = ("www-authenticate", 'Bearer realm="boxoffice"')
_SOON = ("retry-after", "1")


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer to what `when` matches.

    `status` is the HTTP status; None keeps Envoy's. `text` is the message in the JSON
    where it is not the `message`. `grpc_code` is for gRPC clients, where it is not the
    reason's own.
    """

    when: Config
    reason: Reason
    message: str
    status: int | None = None
    text: str | None = None
    grpc_code: grpc.StatusCode | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> int:
        code: int = CODES[self.reason].value[0]
        return code

    @property
    def code_for_grpc(self) -> int:
        code: int = (self.grpc_code or CODES[self.reason]).value[0]
        return code


def local_reply_config() -> Config:
    return {"mappers": [_mapper(reply) for reply in _REPLIES], "body_format": _json(_REPLIES[-1])}


def _mapper(reply: _Reply) -> Config:
    headers = (
        *reply.headers,
        (_CODE_HEADER, str(reply.code_for_grpc)),
        (_MESSAGE_HEADER, reply.message),
        (_DETAILS_HEADER, _details(reply)),
    )
    mapper: Config = {
        "filter": reply.when,
        "headers_to_add": [
            {
                "header": {"key": key, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for key, value in headers
        ],
        "body_format_override": _json(reply),
    }
    if reply.status is not None:
        mapper["status_code"] = reply.status
    return mapper


def _json(reply: _Reply) -> Config:
    info: Config = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reply.reason.value,
        "domain": DOMAIN,
        "metadata": {},
    }
    return {
        "json_format": {
            "code": reply.code,
            "message": reply.text or reply.message,
            "details": [info],
        },
        "content_type": "application/json",
    }


def _details(reply: _Reply) -> str:
    """google.rpc.Status in base64 without padding, as gRPC wants it in a header."""
    status = to_status(DomainError(reply.reason, reply.message))
    # Clients refuse details whose code is not that of grpc-status.
    status.code = reply.code_for_grpc
    return base64.b64encode(status.SerializeToString()).decode().rstrip("=")


def _because(text: str) -> Config:
    """Envoy's reason, which its log shows under `details`, starts with a text."""
    return _where(f"response.code_details.startsWith('{text}')")


def _where(expression: str) -> Config:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": typed(
                "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression=expression,
            ),
        }
    }


def _with_refresh_token() -> Config:
    token = "request.headers['authorization']"
    length = len("Bearer ") + REFRESH_TOKEN_LENGTH
    return _where(f"size({token}) == {length} && !{token}.contains('.')")


def _is(status: int) -> Config:
    return _compared("EQ", status)


def _compared(operator: str, status: int) -> Config:
    # Envoy wants a runtime key; nothing sets it.
    value = {"default_value": status, "runtime_key": f"boxoffice.unused.{operator}.{status}"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}


def _flagged(flag: str) -> Config:
    return {"response_flag_filter": {"flags": [flag]}}


_REPLIES = (
    _Reply(
        _because("jwt_authn_access_denied{Jwt_is_missing"),
        Reason.TOKEN_INVALID,
        "sign in: this call needs a bearer token",
        status=401,
        headers=(_AUTHENTICATE,),
    ),
    _Reply(
        _because("jwt_authn_access_denied{Jwt_is_expired"),
        Reason.TOKEN_EXPIRED,
        "the token has expired",
        status=401,
        headers=(("www-authenticate", f'{_AUTHENTICATE[1]}, error="invalid_token"'),),
    ),
    _Reply(
        # The keys could not be fetched yet: the token may well be good.
        _because("jwt_authn_access_denied{Jwks_remote_fetch"),
        Reason.DEPENDENCY_UNAVAILABLE,
        "tokens cannot be verified at the moment",
        status=503,
        headers=(_SOON,),
    ),
    _Reply(
        {"and_filter": {"filters": [_because("jwt_authn_access_denied"), _with_refresh_token()]}},
        Reason.TOKEN_WRONG_TYPE,
        "this is no access token; send it to /api/v1/auth/refresh for one",
        status=401,
        headers=(("www-authenticate", f'{_AUTHENTICATE[1]}, error="invalid_token"'),),
    ),
    _Reply(
        _because("jwt_authn_access_denied"),
        Reason.TOKEN_INVALID,
        "the token is not valid",
        status=401,
        headers=(("www-authenticate", f'{_AUTHENTICATE[1]}, error="invalid_token"'),),
    ),
    _Reply(
        _because(f"rbac_access_denied_matched_policy[{UNKNOWN_COMPRESSION}]"),
        Reason.VALIDATION_FAILED,
        f"grpc-encoding must be one of {', '.join(COMPRESSIONS)}",
        status=400,
        # What gRPC clients know it by.
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
        headers=(("grpc-accept-encoding", ",".join(COMPRESSIONS)),),
    ),
    # The limiter adds retry-after after this.
    _Reply(_is(429), Reason.RATE_LIMITED, "too many calls; retry-after says when to come back"),
    # UO: a circuit breaker is open. OM: the overload manager refuses.
    _Reply(_flagged("UO"), Reason.OVERLOADED, "too many calls at once", 429, headers=(_SOON,)),
    _Reply(_flagged("OM"), Reason.OVERLOADED, "too many calls at once", 429, headers=(_SOON,)),
    _Reply(
        _is(413),
        Reason.REQUEST_TOO_LARGE,
        "the request is too large",
        # After the transcoder, Envoy would make it a 500.
        headers=((_STATUS_HEADER, "413"),),
    ),
    _Reply(_is(431), Reason.REQUEST_TOO_LARGE, "the request's headers are too large"),
    _Reply(
        _is(405),
        Reason.METHOD_NOT_ALLOWED,
        _NO_SUCH_VERB,
        headers=((_REQUEST_HEADER, "%REQ(:METHOD)% %REQ(:PATH)%"),),
    ),
    _Reply(
        _is(404),
        Reason.ROUTE_NOT_FOUND,
        "no method has this path",
        # What gRPC clients know an unknown method by.
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
        # Lua looks up which verbs the path has.
        headers=((_REQUEST_HEADER, "%REQ(:METHOD)% %REQ(:PATH)%"),),
    ),
    _Reply(
        _because("grpc_json_transcode_failure"),
        Reason.VALIDATION_FAILED,
        "the body is not the JSON that this method takes",
        text=_ENVOYS_TEXT,
    ),
    _Reply(
        _because("early_grpc_json_transcode_failure"),
        Reason.VALIDATION_FAILED,
        "the path or query is not what this method takes",
        text=_ENVOYS_TEXT,
    ),
    _Reply(_is(408), Reason.DEADLINE_EXCEEDED, "the request did not arrive in time"),
    _Reply(_is(504), Reason.DEADLINE_EXCEEDED, "the call's time ran out"),
    _Reply(
        _is(503),
        Reason.DEPENDENCY_UNAVAILABLE,
        "a service that this call needs is away",
        headers=(_SOON,),
    ),
    _Reply(_compared("LE", 499), Reason.VALIDATION_FAILED, "the request is not valid HTTP"),
    _Reply(_compared("GE", 500), Reason.INTERNAL, "the gateway failed"),
)
