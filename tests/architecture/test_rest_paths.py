"""One form for all REST paths, so that a client can guess the next one.

`/api/v1/<plural>/{<singular>_id}/<plural or singleton>/<verb>`; besides it
`/api/v1/auth/…` for what one does with one's own account, and the few paths
whose names others fix: webhooks, health checks, well-known documents, the sandbox's page.
"""

import re
from collections.abc import Iterator

import pytest

from tests.architecture.contract import contract, methods, policies

LITERAL = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
VARIABLE = re.compile(r"\{([a-z][a-z0-9]*(?:_[a-z0-9]+)*_id)\}")
FIXED = re.compile(
    r"/webhooks/(\{provider\}|inbound/\{sender\}|health)"
    r"|/health(/[a-z]+)?"
    r"|/api/v1/search"
    r"|/\.well-known/[a-z-]+\.json"
    r"|/sandbox/[a-z-]+(/\{[a-z]+(_[a-z]+)*_id\})?"
)
API = "/api/v1/"
ACCOUNT = "auth"
# A waiting list has entries; an event has one.
WAITING_LIST = "waiting-list"
# A queue has tickets.
QUEUE = "queue"

# What is done to a thing: nothing comes after it.
VERBS = {
    "block",
    "cancel",
    "change-password",
    "claim",
    "checkout",
    "close",
    "confirm",
    "erase",
    "export",
    "login",
    "logout",
    "refresh",
    "refund",
    "register",
    "reschedule",
    "resend",
    "restock",
    "rotate-secret",
    "unblock",
    "watch",
}
WITH_BODY = {"POST", "PUT", "PATCH"}

BINDINGS = [(policy, binding) for policy in policies().values() for binding in policy.bindings]


def faults(path: str) -> Iterator[str]:
    """What is wrong with the form of a path."""
    if FIXED.fullmatch(path):
        return
    if not path.startswith(API):
        yield f"neither under {API} nor one of the fixed paths"
        return
    segments = path.removeprefix(API).split("/")
    if segments[0] not in (ACCOUNT, WAITING_LIST, QUEUE) and not segments[0].endswith("s"):
        yield f"{segments[0]!r} is no plural"
    for before, segment in zip(["", *segments], segments, strict=False):
        yield from _faults_of_segment(segment, before)


def _faults_of_segment(segment: str, before: str) -> Iterator[str]:
    if before in VERBS:
        yield f"{segment!r} comes after the verb {before!r}"
    if LITERAL.fullmatch(segment):
        return
    variable = VARIABLE.fullmatch(segment)
    if variable is None:
        yield f"{segment!r} is neither lower-case-with-hyphens nor a {{snake_case_id}}"
    elif variable[1].removesuffix("_id") != _one_of(before).replace("-", "_"):
        yield f"{segment!r} does not say which of {before!r}"


def _one_of(plural: str) -> str:
    if plural == WAITING_LIST:
        return "entry"
    if plural == QUEUE:
        return "ticket"
    if plural == "favourites":
        # A favourite is known by its event.
        return "event"
    return re.sub(r"ies$", "y", plural).removesuffix("s")


def test_every_path_has_the_form(subtests: pytest.Subtests) -> None:
    for _, binding in BINDINGS:
        with subtests.test(f"{binding.verb} {binding.path}"):
            assert list(faults(binding.path)) == []
            assert (binding.body != "") == (binding.verb in WITH_BODY)


def test_every_variable_is_a_field_of_the_request(subtests: pytest.Subtests) -> None:
    requests = {path: method.input_type for path, method in methods(contract())}
    fields = {
        f".{file.package}.{message.name}": {field.name for field in message.field}
        for file in contract().file
        for message in file.message_type
    }
    for policy, binding in BINDINGS:
        with subtests.test(f"{binding.verb} {binding.path}"):
            variables = set(re.findall(r"\{(\w+)\}", binding.path))
            assert variables <= fields[requests[policy.path]]


def test_no_two_methods_share_a_path() -> None:
    shapes = [(b.verb, re.sub(r"\{\w+\}", "{}", b.path)) for _, b in BINDINGS]
    assert len(set(shapes)) == len(shapes)


def test_a_method_that_only_reads_is_a_get() -> None:
    reading = [
        binding for policy, binding in BINDINGS if binding.verb == "GET" and not policy.retryable
    ]
    assert reading == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/bookings",
        "/api/v1/bookings/{booking_id}",
        "/api/v1/bookings/{booking_id}/cancel",
        "/api/v1/events/{event_id}/stock/movements",
        "/api/v1/auth/reset-password/confirm",
        "/api/v1/auth/sessions/{session_id}",
        "/api/v1/cancellation-policies",
        "/webhooks/{provider}",
        "/health",
        "/health/database",
        "/.well-known/jwks.json",
        "/sandbox/pay/{payment_id}",
    ],
)
def test_the_form_lets_these_through(path: str) -> None:
    assert list(faults(path)) == []


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/bookings/",
        "/api/v1//bookings",
        "/api/v2/bookings",
        "/bookings",
        "/api/v1/booking",
        "/api/v1/Bookings",
        "/api/v1/event_offers",
        "/api/v1/bookings/{bookingId}",
        "/api/v1/bookings/{id}",
        "/api/v1/bookings/{booking}",
        "/api/v1/bookings/{event_id}",
        "/api/v1/bookings/{booking_id=*}",
        "/api/v1/bookings/{booking_id}:cancel",
        "/api/v1/bookings/{booking_id}/cancel/all",
        "/api/v1/bookings/cancel/{booking_id}",
        "/webhooks/stripe",
        "/webhooks/{provider}/raw",
        "/health/",
        "/sandbox/pay/{paymentId}",
    ],
)
def test_and_stops_these(path: str) -> None:
    assert list(faults(path)) != []
