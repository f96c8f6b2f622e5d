"""Error responses that Envoy creates itself, in the format of all other errors.

The first match in _REPLIES decides; it is written as JSON for REST clients. lua/replies.lua
converts it for gRPC clients and adds details of the single response.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from gateway.extension import Config, typed
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import CODES, DOMAIN, REASON_HEADER, to_status
from mesh.rpc.field_names import json_name
from mesh.rpc.identity import REFRESH_TOKEN_LENGTH
from mesh.settings import SERVICES

COMPRESSIONS = ("identity", "deflate", "gzip")
"""Values of `grpc-encoding` that the services' gRPC runtime supports."""
SECONDS = "NNN"
"""In a message: replaced by lua/replies.lua with the response's Retry-After."""
UNKNOWN_COMPRESSION = "unknown_compression"
"""The RBAC rule in listener.py that rejects other values."""

# Read and removed by lua/replies.lua.
_CODE_HEADER = "x-boxoffice-code"
_MESSAGE_HEADER = "x-boxoffice-message"
_STATUS_HEADER = "x-boxoffice-status"
_REQUEST_HEADER = "x-boxoffice-request"
_DETAILS_HEADER = "grpc-status-details-bin"

_METHOD_NOT_ALLOWED = "the path does not support this HTTP method; see the Allow header"
_LOCAL_REPLY_BODY = "%LOCAL_REPLY_BODY%"
_CHALLENGE = 'Bearer realm="boxoffice"'
_HEALTH = "/boxoffice.health."
_RETRY_AFTER = ("retry-after", "1")


@dataclass(frozen=True, slots=True)
class _Reply:
    """The response when `when` matches.

    `status` is the HTTP status; None keeps Envoy's. `text` replaces `message` in the JSON.
    `grpc_code` replaces the reason's code for gRPC clients.
    """

    when: Config
    reason: Reason
    message: str
    status: int | None = None
    text: str | None = None
    grpc_code: grpc.StatusCode | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
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
        (REASON_HEADER, reply.reason.value),
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
        "metadata": {json_name(key): value for key, value in reply.metadata.items()},
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
    """The google.rpc.Status in base64 without padding, for a gRPC header."""
    status = to_status(DomainError(reply.reason, reply.message, **reply.metadata))
    # Clients ignore details whose code differs from grpc-status.
    status.code = reply.code_for_grpc
    return base64.b64encode(status.SerializeToString()).decode().rstrip("=")


def _because(text: str) -> Config:
    """Matches if Envoy's response code details (`details` in its log) start with `text`."""
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


def _for_path(prefix: str) -> Config:
    """Matches by the gRPC path, which REST calls have too once they are transcoded."""
    return _where(f"request.path.startsWith('{prefix}')")


def _with_refresh_token() -> Config:
    token = "request.headers['authorization']"
    length = len("Bearer ") + REFRESH_TOKEN_LENGTH
    return _where(f"size({token}) == {length} && !{token}.contains('.')")


def _is(status: int) -> Config:
    return _compared("EQ", status)


def _compared(operator: str, status: int) -> Config:
    # Envoy requires a runtime key; it is never set.
    value = {"default_value": status, "runtime_key": f"boxoffice.unused.{operator}.{status}"}
    return {"status_code_filter": {"comparison": {"op": operator, "value": value}}}


def _flagged(flag: str) -> Config:
    return {"response_flag_filter": {"flags": [flag]}}


_REPLIES = (
    _Reply(
        _because("jwt_authn_access_denied{Jwt_is_missing"),
        Reason.TOKEN_INVALID,
        "an access token is required: send it as Authorization: Bearer <token>",
        status=401,
        headers=(("www-authenticate", _CHALLENGE),),
    ),
    _Reply(
        _because("jwt_authn_access_denied{Jwt_is_expired"),
        Reason.TOKEN_EXPIRED,
        "the token has expired",
        status=401,
        headers=(("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
    ),
    _Reply(
        # The keys could not be fetched yet, so the token may be valid.
        _because("jwt_authn_access_denied{Jwks_remote_fetch"),
        Reason.DEPENDENCY_UNAVAILABLE,
        "the keys for verifying tokens are unavailable",
        status=503,
        headers=(_RETRY_AFTER,),
    ),
    _Reply(
        {"and_filter": {"filters": [_because("jwt_authn_access_denied"), _with_refresh_token()]}},
        Reason.TOKEN_WRONG_TYPE,
        "the token is a refresh token; exchange it for an access token at /api/v1/auth/refresh",
        status=401,
        headers=(("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
    ),
    _Reply(
        _because("jwt_authn_access_denied"),
        Reason.TOKEN_INVALID,
        "the token's signature or claims are invalid",
        status=401,
        headers=(("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
    ),
    _Reply(
        {"and_filter": {"filters": [_because("ext_authz_denied"), _is(410)]}},
        Reason.TOKEN_EXPIRED,
        "the API key has expired",
        status=401,
        headers=(("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
    ),
    _Reply(
        _because("ext_authz_denied"),
        Reason.TOKEN_INVALID,
        "the API key is unknown or revoked",
        status=401,
        headers=(("www-authenticate", f'{_CHALLENGE}, error="invalid_token"'),),
    ),
    _Reply(
        _because(f"rbac_access_denied_matched_policy[{UNKNOWN_COMPRESSION}]"),
        Reason.VALIDATION_FAILED,
        f"grpc-encoding must be one of {', '.join(COMPRESSIONS)}",
        status=400,
        # The code that gRPC defines for an unsupported encoding.
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
        headers=(("grpc-accept-encoding", ",".join(COMPRESSIONS)),),
    ),
    # The rate limit filter adds retry-after.
    _Reply(_is(429), Reason.RATE_LIMITED, f"too many calls. Try again in {SECONDS} seconds."),
    # UO: a circuit breaker's limit is reached. OM: the overload manager rejects the request.
    _Reply(
        _flagged("UO"),
        Reason.OVERLOADED,
        "too many concurrent calls",
        status=429,
        headers=(_RETRY_AFTER,),
    ),
    _Reply(
        _flagged("OM"),
        Reason.OVERLOADED,
        "too many concurrent calls",
        status=429,
        headers=(_RETRY_AFTER,),
    ),
    _Reply(
        _is(413),
        Reason.REQUEST_TOO_LARGE,
        "the request body is too large",
        # Restored by Lua: the transcoder turns the 413 into a 500.
        headers=((_STATUS_HEADER, "413"),),
    ),
    _Reply(_is(431), Reason.REQUEST_TOO_LARGE, "the request headers are too large"),
    _Reply(
        _is(405),
        Reason.METHOD_NOT_ALLOWED,
        _METHOD_NOT_ALLOWED,
        headers=((_REQUEST_HEADER, "%REQ(:METHOD)% %REQ(:PATH)%"),),
    ),
    _Reply(
        _is(404),
        Reason.ROUTE_NOT_FOUND,
        "the path does not exist",
        # The code that gRPC defines for an unknown method.
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
        # Lua looks up the HTTP methods of the path.
        headers=((_REQUEST_HEADER, "%REQ(:METHOD)% %REQ(:PATH)%"),),
    ),
    _Reply(
        _is(415),
        Reason.VALIDATION_FAILED,
        "the content-encoding must be gzip or absent",
        text=_LOCAL_REPLY_BODY,
    ),
    _Reply(
        # The only script that answers is lua/requests.lua.
        {"and_filter": {"filters": [_is(400), _because("lua_response")]}},
        Reason.VALIDATION_FAILED,
        "the request is not valid for this method",
        text=_LOCAL_REPLY_BODY,
    ),
    _Reply(
        _because("grpc_json_transcode_failure"),
        Reason.VALIDATION_FAILED,
        "the request body is not valid JSON for this method",
        text=_LOCAL_REPLY_BODY,
    ),
    _Reply(
        _because("early_grpc_json_transcode_failure"),
        Reason.VALIDATION_FAILED,
        "the path or the query parameters are not valid for this method",
        text=_LOCAL_REPLY_BODY,
    ),
    _Reply(_is(408), Reason.DEADLINE_EXCEEDED, "the request was not received in time"),
    _Reply(
        {"and_filter": {"filters": [_compared("GE", 503), _for_path(_HEALTH)]}},
        Reason.DEPENDENCY_UNAVAILABLE,
        "degraded: no service answered",
        status=503,
        metadata=dict.fromkeys(SERVICES, "UNREACHABLE"),
        headers=(_RETRY_AFTER,),
    ),
    _Reply(_is(504), Reason.DEADLINE_EXCEEDED, "the call exceeded its deadline"),
    _Reply(
        _is(503),
        Reason.DEPENDENCY_UNAVAILABLE,
        "a service that this call needs is unavailable",
        headers=(_RETRY_AFTER,),
    ),
    _Reply(_compared("LE", 499), Reason.VALIDATION_FAILED, "the request is not valid HTTP"),
    _Reply(_compared("GE", 500), Reason.INTERNAL, "internal error in the gateway"),
)
