"""Webhooks from a booking's event to the external system that receives it, over real HTTP."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.clients.ports import InboundWebhook
from booking_svc.tables import idempotency_records
from booking_svc.webhooks import (
    consumer,
    deliveries,
    endpoints,
    payload,
    signature,
    url_policy,
)
from booking_svc.webhooks.deliveries import Delivery, Status
from booking_svc.webhooks.delivery_worker import DeliveryWorker
from booking_svc.webhooks.encryption import SecretBox, UnknownKeyError
from booking_svc.webhooks.endpoints import Endpoint
from booking_svc.webhooks.servicers.endpoints import WebhookEndpointServicer
from booking_svc.webhooks.tables import webhook_secrets
from booking_svc.webhooks.url_policy import Rules
from boxoffice.webhooks.v1 import webhook_endpoint_pb2
from boxoffice.webhooks.v1 import webhook_endpoint_service_pb2 as pb2
from mesh.db.outbox import OutboxReader
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.rpc import call
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access
from testing.booking_harness import BookingHarness
from testing.webhook_receiver import Receiver, receiver

RULES = Rules(is_http_allowed=True, is_loopback_allowed=True)
OLD_KEY = "a key of thirty-two characters or more"
SECRET_BOX = SecretBox([OLD_KEY])


@pytest.fixture
async def outside() -> AsyncIterator[Receiver]:
    async with receiver() as here:
        yield here


@pytest.fixture
async def delivery_worker(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DeliveryWorker]:
    monkeypatch.setattr(url_policy, "_RESOLVE_SECONDS", 60.0)
    async with a_delivery_worker(harness) as delivery_worker:
        yield delivery_worker


def a_delivery_worker(harness: BookingHarness) -> AbstractAsyncContextManager[DeliveryWorker]:
    """A worker with a long timeout, so that tests pass on slow machines."""
    return DeliveryWorker.open(
        harness.database, harness.clock, rules=RULES, seal=SECRET_BOX, attempt_seconds=60
    )


async def subscribe(harness: BookingHarness, url: str, *event_types: str) -> Endpoint:
    async with harness.database.transaction() as connection:
        return await endpoints.create(
            connection,
            url=url,
            description="",
            event_types=event_types,
            rules=RULES,
            secret_box=SECRET_BOX,
            now=harness.clock(),
        )


async def apply_bookings(harness: BookingHarness) -> None:
    """Applies all domain events."""
    stream = OutboxReader(harness.database, service_tables.outbox).stream("")
    async with asyncio.timeout(60):
        batch = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    async with harness.database.transaction() as connection:
        await consumer.apply(connection, batch, harness.clock())


async def deliver(delivery_worker: DeliveryWorker) -> int:
    """Attempts every due delivery once. Returns how many."""
    count = await delivery_worker.start_due()
    await delivery_worker.idle()
    return count


async def log(harness: BookingHarness, endpoint: Endpoint) -> Sequence[Delivery]:
    async with harness.database.reading() as connection:
        page = await deliveries.list_page(
            connection,
            endpoint_id=endpoint.endpoint_id,
            status=None,
            page_size=100,
            page_token="",
        )
    return page.deliveries


async def test_an_event_is_delivered_once_and_signed(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    booking = await harness.place(await harness.an_event(), quantity=2)
    await apply_bookings(harness)
    await apply_bookings(harness)
    assert await deliver(delivery_worker) == 1
    assert await deliver(delivery_worker) == 0
    [message] = outside.received
    assert message.is_signed_by(endpoint.new_secret)
    assert not message.is_signed_by(signature.new_secret())
    assert message.headers["webhook-timestamp"] == str(int(harness.clock().timestamp()))
    assert message.headers["content-type"] == "application/json"
    assert message.headers["host"] == f"127.0.0.1:{outside.port}"
    assert message.headers[":request"] == "POST /hooks?of=boxoffice HTTP/1.1"
    assert message.content["type"] == "booking.held"
    data = message.content["data"]
    assert data["booking"]["bookingId"] == str(booking.booking_id)
    assert data["booking"]["total"] == {"currencyCode": "INR", "amountMinor": "300000"}
    [delivery] = await log(harness, endpoint)
    assert (delivery.status, str(delivery.message_id)) == (
        Status.DELIVERED,
        message.headers["webhook-id"],
    )
    assert [attempt.status_code for attempt in delivery.attempts] == [204]


async def test_the_signature_follows_the_standard() -> None:
    """The test vector of the standard's own libraries."""
    headers = signature.headers(
        b'{"test": 2432232314}',
        webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        signing_secrets=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        now=datetime.fromtimestamp(1614265330, UTC),
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


async def test_each_endpoint_receives_the_event_types_it_subscribes_to(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    everything = await subscribe(harness, outside.url, "*", "booking.held")
    confirmed = await subscribe(harness, outside.url, "booking.confirmed")
    disabled = await subscribe(harness, outside.url)
    await change(harness, disabled, is_enabled=False)
    booking = await harness.place(await harness.an_event())
    await harness.capture(booking)
    await harness.run_until_idle()
    await apply_bookings(harness)
    await deliver(delivery_worker)
    assert len(await log(harness, everything)) == 2
    assert [delivery.event_type for delivery in await log(harness, confirmed)] == [
        "booking.confirmed"
    ]
    assert await log(harness, disabled) == ()
    ids = [message.headers["webhook-id"] for message in outside.received]
    assert (len(ids), len(set(ids))) == (3, 2)


async def change(harness: BookingHarness, endpoint: Endpoint, **changes: object) -> Endpoint:
    values: dict[str, object] = {
        "url": None, "description": None, "event_types": (), "is_enabled": None, **changes,
    }  # fmt: skip
    async with harness.database.transaction() as connection:
        return await endpoints.update(
            connection,
            endpoint_id=endpoint.endpoint_id,
            rules=RULES,
            now=harness.clock(),
            **values,  # type: ignore[arg-type]
        )


async def with_one_message(
    harness: BookingHarness, outside: Receiver, *event_types: str
) -> Endpoint:
    """An endpoint with one message to deliver."""
    endpoint = await subscribe(harness, outside.url, *event_types)
    await harness.place(await harness.an_event())
    await apply_bookings(harness)
    return endpoint


@pytest.mark.parametrize("answer", ["500 No", "404 No", "302 Moved", "429 Later", None])
async def test_a_failed_delivery_is_retried_with_the_same_id(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver, answer: str | None
) -> None:
    endpoint = await with_one_message(harness, outside)
    outside.answers = [answer, answer]
    for _ in range(2):
        assert await deliver(delivery_worker) == 1
        assert await deliver(delivery_worker) == 0
        harness.clock.advance(timedelta(minutes=2))
    assert await deliver(delivery_worker) == 1
    assert len({message.headers["webhook-id"] for message in outside.received}) == 1
    # Each attempt has a new timestamp and signature: receivers reject old ones.
    assert len({message.headers["webhook-timestamp"] for message in outside.received}) == 3
    assert all(message.is_signed_by(endpoint.new_secret) for message in outside.received)
    [delivery] = await log(harness, endpoint)
    assert (delivery.status, delivery.attempt_count) == (Status.DELIVERED, 3)


async def test_a_delivery_fails_after_three_days_of_attempts(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    outside.answers = ["500 No"] * 50
    start, attempts = harness.clock.now, 0
    while (delivery := (await log(harness, endpoint))[0]).due_time is not None:
        harness.clock.now = delivery.due_time
        attempts += await deliver(delivery_worker)
    assert attempts == len(deliveries.PAUSES) + 1
    assert timedelta(days=2.9) < harness.clock.now - start < timedelta(days=3.4)
    assert (delivery.status, delivery.attempt_count) == (Status.FAILED, attempts)
    assert {attempt.status_code for attempt in delivery.attempts} == {500}


async def test_a_redirect_is_not_followed(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    outside.answers = [f"307 Go\r\nlocation: http://127.0.0.1:{outside.port}/elsewhere"]
    await deliver(delivery_worker)
    assert len(outside.received) == 1
    assert [attempt.status_code for attempt in (await log(harness, endpoint))[0].attempts] == [307]


async def test_410_gone_disables_the_endpoint(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    outside.answers = ["410 Gone"]
    await deliver(delivery_worker)
    [delivery] = await log(harness, endpoint)
    assert delivery.status is Status.FAILED
    async with harness.database.reading() as connection:
        stored = await endpoints.get(
            connection, endpoint_id=endpoint.endpoint_id, now=harness.clock()
        )
    assert (stored.is_enabled, stored.disable_reason) == (False, "the endpoint is gone (410)")
    with pytest.raises(DomainError) as refused:
        await resend(harness, endpoint, delivery)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    await change(harness, endpoint, is_enabled=True)
    await resend(harness, endpoint, delivery)
    assert await deliver(delivery_worker) == 1
    assert (await log(harness, endpoint))[0].status is Status.DELIVERED


async def resend(harness: BookingHarness, endpoint: Endpoint, delivery: Delivery) -> Delivery:
    async with harness.database.transaction() as connection:
        return await deliveries.resend(
            connection,
            endpoint_id=endpoint.endpoint_id,
            delivery_id=delivery.delivery_id,
            now=harness.clock(),
        )


async def test_the_address_is_checked_before_every_attempt(
    harness: BookingHarness, outside: Receiver
) -> None:
    """The endpoint was created while loopback was allowed; the worker does not call it."""
    endpoint = await with_one_message(harness, outside)
    strict = Rules(is_http_allowed=True)
    async with DeliveryWorker.open(
        harness.database, harness.clock, rules=strict, seal=SECRET_BOX
    ) as delivery_worker:
        await deliver(delivery_worker)
    assert outside.connections == 0
    [delivery] = await log(harness, endpoint)
    assert [attempt.error for attempt in delivery.attempts] == ["the URL is not allowed"]
    assert delivery.status is Status.PENDING


async def test_an_endpoint_that_hangs_does_not_delay_others(
    harness: BookingHarness, outside: Receiver
) -> None:
    async with receiver() as hanging, a_delivery_worker(harness) as delivery_worker:
        hanging.hang()
        slow = await subscribe(harness, hanging.url)
        quick = await subscribe(harness, outside.url)
        event = await harness.an_event()
        for _ in range(8):
            await harness.place(event)
        await apply_bookings(harness)
        async with asyncio.timeout(60):
            while len(outside.received) < 8:
                await delivery_worker.start_due()
                await asyncio.sleep(0.01)
        # At most four deliveries to an endpoint at a time; none has an answer or a second attempt.
        assert hanging.connections <= 4
        hanging.close_connections()
        await delivery_worker.idle()
        assert {delivery.status for delivery in await log(harness, quick)} == {Status.DELIVERED}
        assert {delivery.status for delivery in await log(harness, slow)} == {Status.PENDING}


async def test_an_attempt_at_an_endpoint_that_hangs_ends(harness: BookingHarness) -> None:
    async with (
        receiver() as hanging,
        DeliveryWorker.open(
            harness.database, harness.clock, rules=RULES, seal=SECRET_BOX, attempt_seconds=0.5
        ) as delivery_worker,
    ):
        hanging.hang()
        endpoint = await with_one_message(harness, hanging)
        await deliver(delivery_worker)
        hanging.close_connections()
    [delivery] = await log(harness, endpoint)
    assert delivery.status is Status.PENDING
    assert "Timeout" in delivery.attempts[0].error


async def test_old_and_new_secret_both_sign_during_the_overlap(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    rotated = await rotate(harness, endpoint, timedelta(hours=1))
    await deliver(delivery_worker)
    [message] = outside.received
    assert message.is_signed_by(endpoint.new_secret)
    assert message.is_signed_by(rotated.new_secret)
    harness.clock.advance(timedelta(hours=1))
    await resend(harness, endpoint, (await log(harness, endpoint))[0])
    await deliver(delivery_worker)
    assert not outside.received[1].is_signed_by(endpoint.new_secret)
    assert outside.received[1].is_signed_by(rotated.new_secret)


async def rotate(harness: BookingHarness, endpoint: Endpoint, overlap: timedelta) -> Endpoint:
    async with harness.database.transaction() as connection:
        return await endpoints.rotate_secret(
            connection,
            endpoint_id=endpoint.endpoint_id,
            overlap=overlap,
            secret_box=SECRET_BOX,
            now=harness.clock(),
        )


async def test_an_endpoint_has_at_most_four_secrets(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    made = [endpoint.new_secret]
    for _ in range(6):
        rotated = await rotate(harness, endpoint, timedelta(days=1))
        made.append(rotated.new_secret)
    assert await valid_secrets(harness, endpoint) == made[:-5:-1]
    rotated = await rotate(harness, endpoint, timedelta(0))
    assert await valid_secrets(harness, endpoint) == [rotated.new_secret]


async def valid_secrets(
    harness: BookingHarness, endpoint: Endpoint, secret_box: SecretBox = SECRET_BOX
) -> Sequence[str]:
    async with harness.database.reading() as connection:
        return await endpoints.signing_secrets(
            connection, endpoint_id=endpoint.endpoint_id, secret_box=secret_box, now=harness.clock()
        )


async def stored_secrets(harness: BookingHarness) -> Sequence[str]:
    """The secrets as stored in the database."""
    async with harness.database.reading() as connection:
        secrets = await connection.execute(
            sa.select(webhook_secrets.c.secret).order_by(webhook_secrets.c.secret_id)
        )
    return secrets.scalars().all()


async def encrypt_with_newest_key(harness: BookingHarness, secret_box: SecretBox) -> int:
    async with harness.database.transaction() as connection:
        return await endpoints.encrypt_with_newest_key(connection, secret_box=secret_box)


async def test_secrets_are_encrypted_in_the_database(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    [encrypted] = await stored_secrets(harness)
    assert signature.PREFIX not in encrypted
    assert endpoint.new_secret.removeprefix(signature.PREFIX) not in encrypted
    with pytest.raises(UnknownKeyError):
        await valid_secrets(harness, endpoint, SecretBox(["k" * 32]))


async def test_the_stored_answer_of_an_idempotent_call_is_encrypted(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    servicer = WebhookEndpointServicer(
        database=harness.database,
        writes=harness.writes,
        delivery_worker=delivery_worker,
        rules=RULES,
        secret_box=SECRET_BOX,
        clock=harness.clock,
    )
    request = pb2.CreateWebhookEndpointRequest(url=outside.url)

    async def create() -> webhook_endpoint_pb2.WebhookEndpoint:
        call.begin(request_id="r", idempotency_key="k")
        call.identify(admin)
        return await servicer.CreateWebhookEndpoint(request, None)

    admin = Caller("gateway", new_id(), Access.ADMIN)
    first, repeated = [await asyncio.create_task(create()) for _ in range(2)]
    assert first == repeated
    assert first.secret.startswith(signature.PREFIX)
    async with harness.database.reading() as connection:
        response = await connection.scalar(sa.select(idempotency_records.c.response))
    assert isinstance(response, bytes)
    assert first.secret.encode() not in response


async def test_plain_text_secrets_of_older_versions_are_encrypted(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    """They stay valid for signing before and after."""
    endpoint = await with_one_message(harness, outside)
    async with harness.database.transaction() as connection:
        await connection.execute(sa.update(webhook_secrets).values(secret=endpoint.new_secret))
    assert await valid_secrets(harness, endpoint) == [endpoint.new_secret]
    assert [await encrypt_with_newest_key(harness, SECRET_BOX) for _ in range(2)] == [1, 0]
    assert endpoint.new_secret not in await stored_secrets(harness)
    await deliver(delivery_worker)
    assert outside.received[0].is_signed_by(endpoint.new_secret)


async def test_an_encryption_key_is_replaced_by_a_newer_one(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    older, newer = OLD_KEY, "a newer key, also of 32 characters"
    both = SecretBox([newer, older])
    assert await valid_secrets(harness, endpoint, both) == [endpoint.new_secret]
    assert [await encrypt_with_newest_key(harness, both) for _ in range(2)] == [1, 0]
    assert await valid_secrets(harness, endpoint, SecretBox([newer])) == [endpoint.new_secret]
    with pytest.raises(UnknownKeyError):
        await encrypt_with_newest_key(harness, SecretBox([older]))


async def test_the_messages_of_a_crashed_process_are_delivered_by_others(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    leased = await lease(harness)
    assert await deliver(delivery_worker) == 0
    harness.clock.advance(deliveries.LEASE)
    assert await deliver(delivery_worker) == 1
    # The first process reports an attempt after its lease has expired: it changes nothing.
    await record(harness, leased, 500)
    assert [delivery.status for delivery in await log(harness, endpoint)] == [Status.DELIVERED]


async def test_a_late_outcome_is_refused_while_another_process_holds_the_lease(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    first = await lease(harness)
    harness.clock.advance(deliveries.LEASE)
    second = await lease(harness)
    await record(harness, first, 500)
    assert [delivery.status for delivery in await log(harness, endpoint)] == [Status.PENDING]
    await record(harness, second, 204)
    [delivery] = await log(harness, endpoint)
    assert delivery.status is Status.DELIVERED
    assert [attempt.status_code for attempt in delivery.attempts] == [204]


async def lease(harness: BookingHarness) -> deliveries.Leased:
    async with harness.database.transaction() as connection:
        [leased] = await deliveries.lease_due(
            connection, now=harness.clock(), limit=9, per_endpoint=9, busy=[]
        )
    return leased


async def record(harness: BookingHarness, leased: deliveries.Leased, status_code: int) -> None:
    """The outcome of an attempt after which there is no other."""
    async with harness.database.transaction() as connection:
        attempt = deliveries.Attempt(harness.clock(), status_code, "", 1)
        await deliveries.record_attempt(
            connection, leased=leased, attempt=attempt, is_final=True, jitter=0, now=harness.clock()
        )


async def test_concurrent_workers_send_each_message_once(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    event = await harness.an_event()
    for _ in range(10):
        await harness.place(event)
    await apply_bookings(harness)
    async with a_delivery_worker(harness) as other:
        while sum(await asyncio.gather(deliver(delivery_worker), deliver(other))):
            pass
    assert {
        attempt.error for delivery in await log(harness, endpoint) for attempt in delivery.attempts
    } == {""}
    ids = [message.headers["webhook-id"] for message in outside.received]
    assert len(ids) == len(set(ids)) == 10


async def test_the_log_is_kept_for_thirty_days(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    await deliver(delivery_worker)
    for duration, expected in ((timedelta(days=29), 1), (timedelta(days=2), 0)):
        harness.clock.advance(duration)
        async with harness.database.transaction() as connection:
            await deliveries.forget(connection, now=harness.clock())
        assert len(await log(harness, endpoint)) == expected


async def test_deleting_an_endpoint_deletes_its_deliveries(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await with_one_message(harness, outside)
    async with harness.database.transaction() as connection:
        await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert await deliver(delivery_worker) == 0
    with pytest.raises(DomainError) as refused:
        async with harness.database.transaction() as connection:
            await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert refused.value.reason is Reason.WEBHOOK_ENDPOINT_NOT_FOUND


async def test_a_webhook_of_another_sender_is_passed_on_once(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url, "inbound.received")
    other = await subscribe(harness, outside.url, "booking.held")
    bodies = (b'{"lead": "\xc3\xa9"}', b"\xff\x00")
    webhooks = [
        InboundWebhook(UUID(int=number), "crm", "application/json", body, harness.clock())
        for number, body in enumerate(bodies, 1)
    ]
    for _ in range(2):
        async with harness.database.transaction() as connection:
            await consumer.apply_inbound(connection, webhooks, harness.clock())
    while await deliver(delivery_worker):
        pass
    assert await log(harness, other) == ()
    assert len(await log(harness, endpoint)) == 2
    sent = [payload.of_inbound(webhook) for webhook in webhooks]
    assert [message.message_id for message in sent] == [UUID(int=1), UUID(int=2)]
    contents = [json.loads(message.body)["data"]["inbound"] for message in sent]
    assert [base64.b64decode(content["body"]) for content in contents] == list(bodies)
    assert [content["text"] for content in contents] == ['{"lead": "é"}', None]


async def test_a_test_message_reaches_its_endpoint_only_whatever_it_subscribes_to(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url, "booking.confirmed")
    other = await subscribe(harness, outside.url)
    message = payload.of_test(endpoint.endpoint_id, now=harness.clock())

    async def send() -> Delivery:
        async with harness.database.transaction() as connection:
            return await deliveries.send_test(
                connection,
                endpoint_id=endpoint.endpoint_id,
                message=message,
                now=harness.clock(),
            )

    queued = await send()
    assert (queued.event_type, queued.status) == ("webhook.test", Status.PENDING)
    assert await deliver(delivery_worker) == 1
    [delivery] = await log(harness, endpoint)
    assert (delivery.delivery_id, delivery.status) == (queued.delivery_id, Status.DELIVERED)
    assert await log(harness, other) == ()
    await change(harness, endpoint, is_enabled=False)
    with pytest.raises(DomainError) as refused:
        await send()
    assert refused.value.reason is Reason.VALIDATION_FAILED


async def test_the_number_of_endpoints_is_limited(
    harness: BookingHarness, outside: Receiver
) -> None:
    for _ in range(endpoints.MAX_ENDPOINTS):
        await subscribe(harness, outside.url)
    with pytest.raises(DomainError) as refused:
        await subscribe(harness, outside.url)
    assert refused.value.reason is Reason.VALIDATION_FAILED


async def test_an_unknown_delivery_is_not_found(harness: BookingHarness, outside: Receiver) -> None:
    endpoint = await subscribe(harness, outside.url)
    with pytest.raises(DomainError) as refused:
        async with harness.database.transaction() as connection:
            await deliveries.resend(
                connection,
                endpoint_id=endpoint.endpoint_id,
                delivery_id=UUID(int=1),
                now=harness.clock(),
            )
    assert refused.value.reason is Reason.WEBHOOK_DELIVERY_NOT_FOUND


async def test_the_worker_runs_until_cancelled(
    harness: BookingHarness, delivery_worker: DeliveryWorker, outside: Receiver
) -> None:
    running = asyncio.create_task(delivery_worker.run())
    await with_one_message(harness, outside)
    delivery_worker.wake()
    async with asyncio.timeout(60):
        while not outside.received:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
