"""Webhooks are verified, stored once, and have one effect."""

import asyncio
import hashlib
import json
import logging
from datetime import timedelta

import pytest
import sqlalchemy as sa

from mesh.errors import DomainError, Reason
from payment_svc import tables
from payment_svc.payments import Status
from payment_svc.providers.fields import UNREADABLE
from payment_svc.providers.sandbox import signature
from payment_svc.webhooks import Outcome
from testing.payment_harness import NOW, SECRET, SandboxHarness, rewritten

BODY = b'{"id":"evt_1","type":"payment.captured"}'


def is_genuine(
    body: bytes,
    header: str | None,
    *,
    seconds_later: float = 0,
    secrets: tuple[str, ...] = (SECRET,),
) -> bool:
    try:
        signature.verify(body, header, secrets=secrets, now=NOW + timedelta(seconds=seconds_later))
    except DomainError as error:
        if error.reason is not Reason.WEBHOOK_SIGNATURE_INVALID:
            raise
        return False
    return True


HEADER = signature.sign(BODY, secret=SECRET, now=NOW)


def test_the_signature_is_an_hmac_over_time_and_body() -> None:
    # printf '1772366400.{"id":…}' | openssl dgst -sha256 -hmac "$SECRET"
    digest = "4a35588023740d8a87343290984f54f30398b8aa0f15ef0dc33cffaa5209b0f1"
    assert f"t=1772366400,v1={digest}" == HEADER
    assert is_genuine(BODY, HEADER)


def test_a_body_with_a_flipped_bit_is_not_genuine() -> None:
    for position in range(len(BODY)):
        for bit in range(8):
            forged = bytearray(BODY)
            forged[position] ^= 1 << bit
            assert not is_genuine(bytes(forged), HEADER)
    assert not is_genuine(BODY + b" ", HEADER)
    assert not is_genuine(BODY[:-1], HEADER)
    assert not is_genuine(b"", HEADER)


def test_a_header_with_a_changed_character_is_not_genuine() -> None:
    for position in range(len(HEADER)):
        for other in "0f,=t ":
            forged = HEADER[:position] + other + HEADER[position + 1 :]
            if forged != HEADER:
                assert not is_genuine(BODY, forged), forged


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "t=",
        "v1=",
        ",,,",
        "t=1,v1=é",
        "t=١,v1=00",
        f"t={'9' * 400},v1=00",
        HEADER.replace("v1", "v0"),
        HEADER.split(",")[1],
        HEADER.split(",")[0],
        f"t=0,{HEADER}",
        HEADER + "," * 2000,
        json.dumps({"t": 1}),
    ],
)
def test_a_malformed_header_is_not_genuine(header: str | None) -> None:
    assert not is_genuine(BODY, header)


def test_each_of_several_secrets_is_valid() -> None:
    new = signature.sign(BODY, secret="new", now=NOW)
    assert not is_genuine(BODY, new)
    assert is_genuine(BODY, new, secrets=(SECRET, "new"))
    assert is_genuine(BODY, HEADER, secrets=("new", SECRET))
    assert not is_genuine(BODY, HEADER, secrets=())


@pytest.mark.parametrize(
    ("seconds_later", "genuine"), [(300, True), (301, False), (-300, True), (-301, False)]
)
def test_a_signature_is_valid_for_five_minutes(seconds_later: float, genuine: bool) -> None:
    assert is_genuine(BODY, HEADER, seconds_later=seconds_later) is genuine


async def test_nothing_of_a_forged_webhook_is_stored(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    good = signature.sign(body, secret=SECRET, now=harness.clock())
    rewritten = json.dumps(json.loads(body), indent=1).encode()
    forgeries = [
        (rewritten, good),
        (body, signature.sign(body, secret="wrong", now=harness.clock())),
        (body, signature.sign(body, secret=SECRET, now=NOW - timedelta(seconds=301))),
        (body, "none"),
    ]
    forgeries += [(body[:n] + bytes([body[n] ^ 1]) + body[n + 1 :], good) for n in range(len(body))]
    for forged, header in forgeries:
        with pytest.raises(DomainError) as refusal:
            await harness.receive(forged, header=header)
        assert refusal.value.reason is Reason.WEBHOOK_SIGNATURE_INVALID
    assert await harness.count(tables.webhook_inbox) == 0
    assert await harness.find(payment) == payment


async def test_a_webhook_is_stored_with_its_raw_bytes(harness: SandboxHarness) -> None:
    payment = await harness.open_paid()
    (body,) = await harness.webhook_bodies()
    async with harness.database.transaction() as connection:
        stored = (await connection.execute(sa.select(tables.webhook_inbox))).one()
    assert stored.payload == body
    assert stored.sha256 == hashlib.sha256(body).digest()
    assert stored.payment_id == payment.payment_id
    assert (stored.event_type, stored.outcome) == ("payment.captured", "APPLIED")


async def test_concurrent_deliveries_have_one_effect(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    outcomes = await asyncio.gather(*(harness.receive(body) for _ in range(8)))
    assert sorted(outcomes) == [Outcome.APPLIED, *[Outcome.DUPLICATE] * 7]
    assert (await harness.find(payment)).status is Status.CAPTURED
    assert await harness.event_kinds() == ["captured"]


async def test_the_same_capture_under_another_event_id_changes_nothing(
    harness: SandboxHarness,
) -> None:
    await harness.open_paid()
    (body,) = await harness.webhook_bodies()
    assert await harness.receive(rewritten(body, id="evt_other")) is Outcome.UNCHANGED
    assert await harness.event_kinds() == ["captured"]


async def test_an_unknown_type_is_stored_without_effect(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    unknown = rewritten(body, type="payment.disputed")
    assert await harness.receive(unknown) is Outcome.UNKNOWN_TYPE
    assert await harness.receive(unknown) is Outcome.DUPLICATE
    assert await harness.find(payment) == payment


INVALID_FIELDS: list[dict[str, object]] = [
    {"amount_minor": "150000"},
    {"amount_minor": 1500.0},
    {"amount_minor": -1},
    {"amount_minor": 0},
    {"amount_minor": True},
    {"amount_minor": 2**63},
    {"currency_code": "inr"},
    {"currency_code": None},
    {"payment_id": "x"},
    {"payment_id": None},
    {"capture_id": "\0"},
    {"capture_id": "x" * 256},
    {"create_time": "2026-03-01T12:00:00"},
    {"create_time": 5},
    {"type": ["payment.captured"]},
    {"data": None},
    {"data": []},
]


async def test_signed_webhooks_with_invalid_fields_are_stored_without_effect(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    for change in INVALID_FIELDS:
        assert await harness.receive(rewritten(body, **change)) is Outcome.UNKNOWN_TYPE, change
    assert await harness.count(tables.webhook_inbox) == len(INVALID_FIELDS)
    assert await harness.find(payment) == payment


async def test_signed_bodies_that_cannot_be_read_are_stored_under_their_hashes(
    harness: SandboxHarness,
) -> None:
    bodies = [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"1"]
    for body in bodies:
        assert await harness.receive(body) is Outcome.UNKNOWN_TYPE
        assert await harness.receive(body) is Outcome.DUPLICATE
    async with harness.database.transaction() as connection:
        stored = (await connection.execute(sa.select(tables.webhook_inbox))).all()
    assert {row.payload for row in stored} == set(bodies)
    assert {row.event_type for row in stored} == {UNREADABLE}


async def test_a_webhook_of_an_unknown_payment_is_unmatched_and_logged(
    harness: SandboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    other = "0192b000-0000-7000-8000-000000000000"
    assert await harness.receive(rewritten(body, payment_id=other)) is Outcome.UNMATCHED
    assert "ERROR" in [record.levelname for record in caplog.records]
    async with harness.database.transaction() as connection:
        stored = (await connection.execute(sa.select(tables.webhook_inbox))).one()
    assert (stored.outcome, str(stored.payment_id)) == ("UNEXPLAINED", other)


async def test_the_log_has_a_webhooks_id_type_and_hash_only(
    harness: SandboxHarness, caplog: pytest.LogCaptureFixture
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    (body,) = await harness.webhook_bodies()
    canary = rewritten(body, method="canary-4242")
    with caplog.at_level(logging.DEBUG, logger="payment_svc"):
        await harness.receive(canary)
    (line,) = [record for record in caplog.records if record.message == "webhook"]
    assert line.__dict__["sha256"] == hashlib.sha256(canary).hexdigest()
    assert line.__dict__["event_type"] == "payment.captured"
    assert "canary-4242" not in "".join(str(record.__dict__) for record in caplog.records)
