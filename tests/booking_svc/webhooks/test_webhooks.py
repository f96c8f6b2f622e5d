"""From what happens to a booking to the outside system that is told of it, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc.bookings import tables
from booking_svc.bookings.outbox import BookingEvents
from booking_svc.tables import idempotency_records
from booking_svc.webhooks import consumer, deliveries, endpoints, signature, url_policy
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
SEAL = SecretBox([OLD_KEY])


@pytest.fixture
async def outside() -> AsyncIterator[Receiver]:
    async with receiver() as here:
        yield here


@pytest.fixture
async def courier(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DeliveryWorker]:
    monkeypatch.setattr(url_policy, "_RESOLVE_SECONDS", 60.0)
    async with a_courier(harness) as courier:
        yield courier


def a_courier(harness: BookingHarness) -> AbstractAsyncContextManager[DeliveryWorker]:
    """One that no machine is too slow for."""
    return DeliveryWorker.open(
        harness.database, harness.clock, rules=RULES, seal=SEAL, attempt_seconds=60
    )


async def subscribe(harness: BookingHarness, url: str, *event_types: str) -> Endpoint:
    async with harness.database.transaction() as connection:
        return await endpoints.create(
            connection,
            url=url,
            description="",
            event_types=event_types,
            rules=RULES,
            seal=SEAL,
            now=harness.clock(),
        )


async def follow(harness: BookingHarness) -> None:
    """The follower has heard of everything."""
    events = BookingEvents(OutboxReader(harness.database, tables.outbox))
    stream = events.open("")
    async with asyncio.timeout(60):
        _, batch = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    async with harness.database.transaction() as connection:
        await consumer.apply(connection, batch, harness.clock())


async def deliver(courier: DeliveryWorker) -> int:
    """Everything that is due is tried once. Returns how much it was."""
    count = await courier.start_due()
    await courier.idle()
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


async def test_what_happens_is_told_signed_and_once(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    booking = await harness.place(await harness.an_event(), quantity=2)
    await follow(harness)
    await follow(harness)
    assert await deliver(courier) == 1
    assert await deliver(courier) == 0
    [told] = outside.received
    assert told.is_signed_by(endpoint.new_secret)
    assert not told.is_signed_by(signature.new_secret())
    assert told.headers["webhook-timestamp"] == str(int(harness.clock().timestamp()))
    assert told.headers["content-type"] == "application/json"
    assert told.headers["host"] == f"127.0.0.1:{outside.port}"
    assert told.headers[":request"] == "POST /hooks?of=boxoffice HTTP/1.1"
    assert told.content["type"] == "booking.held"
    data = told.content["data"]
    assert data["booking"]["bookingId"] == str(booking.booking_id)
    assert data["booking"]["total"] == {"currencyCode": "INR", "amountMinor": "300000"}
    [delivery] = await log(harness, endpoint)
    assert (delivery.status, str(delivery.message_id)) == (
        Status.DELIVERED,
        told.headers["webhook-id"],
    )
    assert [attempt.status_code for attempt in delivery.attempts] == [204]


async def test_the_signature_is_the_standards() -> None:
    """The example of the standard's own libraries."""
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


async def test_everybody_is_told_what_they_asked_for(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    everything = await subscribe(harness, outside.url, "*", "booking.held")
    confirmed = await subscribe(harness, outside.url, "booking.confirmed")
    off = await subscribe(harness, outside.url)
    await change(harness, off, is_enabled=False)
    booking = await harness.place(await harness.an_event())
    await harness.capture(booking)
    await harness.run_until_idle()
    await follow(harness)
    await deliver(courier)
    assert len(await log(harness, everything)) == 2
    assert [each.event_type for each in await log(harness, confirmed)] == ["booking.confirmed"]
    assert await log(harness, off) == ()
    ids = [told.headers["webhook-id"] for told in outside.received]
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


async def told_once(harness: BookingHarness, outside: Receiver, *event_types: str) -> Endpoint:
    """An endpoint with one message on its way."""
    endpoint = await subscribe(harness, outside.url, *event_types)
    await harness.place(await harness.an_event())
    await follow(harness)
    return endpoint


@pytest.mark.parametrize("answer", ["500 No", "404 No", "302 Moved", "429 Later", None])
async def test_what_is_not_taken_is_tried_again_with_the_same_id(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver, answer: str | None
) -> None:
    endpoint = await told_once(harness, outside)
    outside.answers = [answer, answer]
    for _ in range(2):
        assert await deliver(courier) == 1
        assert await deliver(courier) == 0
        harness.clock.advance(timedelta(minutes=2))
    assert await deliver(courier) == 1
    assert len({told.headers["webhook-id"] for told in outside.received}) == 1
    # Signed afresh each time: a receiver refuses a message of long ago.
    assert len({told.headers["webhook-timestamp"] for told in outside.received}) == 3
    assert all(told.is_signed_by(endpoint.new_secret) for told in outside.received)
    [delivery] = await log(harness, endpoint)
    assert (delivery.status, delivery.attempt_count) == (Status.DELIVERED, 3)


async def test_it_is_tried_for_three_days_and_given_up(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    outside.answers = ["500 No"] * 50
    began, tries = harness.clock.now, 0
    while (delivery := (await log(harness, endpoint))[0]).due_time is not None:
        harness.clock.now = delivery.due_time
        tries += await deliver(courier)
    assert tries == len(deliveries.PAUSES) + 1
    assert timedelta(days=2.9) < harness.clock.now - began < timedelta(days=3.4)
    assert (delivery.status, delivery.attempt_count) == (Status.FAILED, tries)
    assert {attempt.status_code for attempt in delivery.attempts} == {500}


async def test_a_redirect_is_not_followed(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    outside.answers = [f"307 Go\r\nlocation: http://127.0.0.1:{outside.port}/elsewhere"]
    await deliver(courier)
    assert len(outside.received) == 1
    assert [each.status_code for each in (await log(harness, endpoint))[0].attempts] == [307]


async def test_gone_means_gone(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    outside.answers = ["410 Gone"]
    await deliver(courier)
    [delivery] = await log(harness, endpoint)
    assert delivery.status is Status.FAILED
    async with harness.database.reading() as connection:
        now = await endpoints.get(connection, endpoint_id=endpoint.endpoint_id, now=harness.clock())
    assert (now.is_enabled, now.disable_reason) == (False, "the endpoint is gone (410)")
    with pytest.raises(DomainError) as refused:
        await resend(harness, endpoint, delivery)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    await change(harness, endpoint, is_enabled=True)
    await resend(harness, endpoint, delivery)
    assert await deliver(courier) == 1
    assert (await log(harness, endpoint))[0].status is Status.DELIVERED


async def resend(harness: BookingHarness, endpoint: Endpoint, delivery: Delivery) -> Delivery:
    async with harness.database.transaction() as connection:
        return await deliveries.resend(
            connection,
            endpoint_id=endpoint.endpoint_id,
            delivery_id=delivery.delivery_id,
            now=harness.clock(),
        )


async def test_an_address_is_looked_at_before_every_try(
    harness: BookingHarness, outside: Receiver
) -> None:
    """The endpoint was let in when loopback was allowed; the courier does not go there."""
    endpoint = await told_once(harness, outside)
    strict = Rules(is_http_allowed=True)
    async with DeliveryWorker.open(
        harness.database, harness.clock, rules=strict, seal=SEAL
    ) as courier:
        await deliver(courier)
    assert outside.connections == 0
    [delivery] = await log(harness, endpoint)
    assert [attempt.error for attempt in delivery.attempts] == ["the URL is not allowed"]
    assert delivery.status is Status.PENDING


async def test_an_endpoint_that_hangs_keeps_nobody_else_waiting(
    harness: BookingHarness, outside: Receiver
) -> None:
    async with AsyncExitStack() as stack:
        hanging = await stack.enter_async_context(receiver())
        hanging.is_hanging = True
        courier = await stack.enter_async_context(
            DeliveryWorker.open(
                harness.database, harness.clock, rules=RULES, seal=SEAL, attempt_seconds=10
            )
        )
        slow = await subscribe(harness, hanging.url)
        quick = await subscribe(harness, outside.url)
        event = await harness.an_event()
        for _ in range(8):
            await harness.place(event)
        await follow(harness)
        async with asyncio.timeout(60):
            while len(outside.received) < 8:
                await courier.start_due()
                await asyncio.sleep(0.01)
        # Four at a time, and none of them has an answer yet or was tried twice.
        assert hanging.connections <= 4
        await courier.idle()
        assert {each.status for each in await log(harness, quick)} == {Status.DELIVERED}
        assert {each.status for each in await log(harness, slow)} == {Status.PENDING}
        errors = {attempt.error for each in await log(harness, slow) for attempt in each.attempts}
        assert errors <= {"TimeoutError", "ReadTimeout"}


async def test_two_secrets_sign_while_a_receiver_changes_over(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    rotated = await rotate(harness, endpoint, timedelta(hours=1))
    await deliver(courier)
    [told] = outside.received
    assert told.is_signed_by(endpoint.new_secret)
    assert told.is_signed_by(rotated.new_secret)
    harness.clock.advance(timedelta(hours=1))
    await resend(harness, endpoint, (await log(harness, endpoint))[0])
    await deliver(courier)
    assert not outside.received[1].is_signed_by(endpoint.new_secret)
    assert outside.received[1].is_signed_by(rotated.new_secret)


async def rotate(harness: BookingHarness, endpoint: Endpoint, overlap: timedelta) -> Endpoint:
    async with harness.database.transaction() as connection:
        return await endpoints.rotate_secret(
            connection,
            endpoint_id=endpoint.endpoint_id,
            overlap=overlap,
            seal=SEAL,
            now=harness.clock(),
        )


async def test_there_are_never_more_than_four_secrets(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    made = [endpoint.new_secret]
    for _ in range(6):
        rotated = await rotate(harness, endpoint, timedelta(days=1))
        made.append(rotated.new_secret)
    assert await in_force(harness, endpoint) == made[:-5:-1]
    rotated = await rotate(harness, endpoint, timedelta(0))
    assert await in_force(harness, endpoint) == [rotated.new_secret]


async def in_force(
    harness: BookingHarness, endpoint: Endpoint, seal: SecretBox = SEAL
) -> Sequence[str]:
    async with harness.database.reading() as connection:
        return await endpoints.signing_secrets(
            connection, endpoint_id=endpoint.endpoint_id, seal=seal, now=harness.clock()
        )


async def stored(harness: BookingHarness) -> Sequence[str]:
    """The secrets as whoever reads the database sees them."""
    async with harness.database.reading() as connection:
        found = await connection.execute(
            sa.select(webhook_secrets.c.secret).order_by(webhook_secrets.c.secret_id)
        )
    return found.scalars().all()


async def reseal(harness: BookingHarness, seal: SecretBox) -> int:
    async with harness.database.transaction() as connection:
        return await endpoints.reseal(connection, seal=seal)


async def test_the_database_does_not_tell_the_secrets(
    harness: BookingHarness, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    [sealed] = await stored(harness)
    assert signature.PREFIX not in sealed
    assert endpoint.new_secret.removeprefix(signature.PREFIX) not in sealed
    with pytest.raises(UnknownKeyError):
        await in_force(harness, endpoint, SecretBox(["k" * 32]))


async def test_nor_does_the_answer_that_is_kept_for_a_repetition(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    servicer = WebhookEndpointServicer(
        database=harness.database,
        writes=harness.writes,
        courier=courier,
        rules=RULES,
        seal=SEAL,
        clock=harness.clock,
    )
    request = pb2.CreateWebhookEndpointRequest(url=outside.url)

    async def create() -> webhook_endpoint_pb2.WebhookEndpoint:
        call.begin(request_id="r", idempotency_key="k")
        call.identify(admin)
        return await servicer.CreateWebhookEndpoint(request, None)

    admin = Caller("gateway", new_id(), Access.ADMIN)
    first, again = [await asyncio.create_task(create()) for _ in range(2)]
    assert first == again
    assert first.secret.startswith(signature.PREFIX)
    async with harness.database.reading() as connection:
        kept = await connection.scalar(sa.select(idempotency_records.c.response))
    assert isinstance(kept, bytes)
    assert first.secret.encode() not in kept


async def test_secrets_of_before_there_was_a_key_are_sealed(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    """They sign before and after, and none is lost."""
    endpoint = await told_once(harness, outside)
    async with harness.database.transaction() as connection:
        await connection.execute(sa.update(webhook_secrets).values(secret=endpoint.new_secret))
    assert await in_force(harness, endpoint) == [endpoint.new_secret]
    assert [await reseal(harness, SEAL) for _ in range(2)] == [1, 0]
    assert endpoint.new_secret not in await stored(harness)
    await deliver(courier)
    assert outside.received[0].is_signed_by(endpoint.new_secret)


async def test_a_key_is_replaced_by_a_newer_one(harness: BookingHarness, outside: Receiver) -> None:
    endpoint = await subscribe(harness, outside.url)
    older, newer = OLD_KEY, "a newer key, also of 32 characters"
    both = SecretBox([newer, older])
    assert await in_force(harness, endpoint, both) == [endpoint.new_secret]
    assert [await reseal(harness, both) for _ in range(2)] == [1, 0]
    assert await in_force(harness, endpoint, SecretBox([newer])) == [endpoint.new_secret]
    with pytest.raises(UnknownKeyError):
        await reseal(harness, SecretBox([older]))


async def test_a_process_that_dies_leaves_its_messages_to_others(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    async with harness.database.transaction() as connection:
        [late] = await deliveries.lease_due(
            connection, now=harness.clock(), limit=9, per_endpoint=9, busy=[]
        )
    assert await deliver(courier) == 0
    harness.clock.advance(deliveries.LEASE)
    assert await deliver(courier) == 1
    # The first one wakes up and settles what is not its own any more.
    async with harness.database.transaction() as connection:
        attempt = deliveries.Attempt(harness.clock(), 500, "", 1)
        await deliveries.settle(
            connection, leased=late, attempt=attempt, is_final=True, spread=0, now=harness.clock()
        )
    assert [each.status for each in await log(harness, endpoint)] == [Status.DELIVERED]


async def test_many_couriers_send_each_message_once(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(harness, outside.url)
    event = await harness.an_event()
    for _ in range(10):
        await harness.place(event)
    await follow(harness)
    async with a_courier(harness) as other:
        while sum(await asyncio.gather(deliver(courier), deliver(other))):
            pass
    assert {one.error for each in await log(harness, endpoint) for one in each.attempts} == {""}
    ids = [told.headers["webhook-id"] for told in outside.received]
    assert len(ids) == len(set(ids)) == 10


async def test_the_log_is_kept_for_thirty_days(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    await deliver(courier)
    for later, left in ((timedelta(days=29), 1), (timedelta(days=2), 0)):
        harness.clock.advance(later)
        async with harness.database.transaction() as connection:
            await deliveries.forget(connection, now=harness.clock())
        assert len(await log(harness, endpoint)) == left


async def test_an_endpoint_that_is_deleted_takes_its_messages_along(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(harness, outside)
    async with harness.database.transaction() as connection:
        await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert await deliver(courier) == 0
    with pytest.raises(DomainError) as refused:
        async with harness.database.transaction() as connection:
            await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert refused.value.reason is Reason.WEBHOOK_ENDPOINT_NOT_FOUND


async def test_there_is_a_limit_to_endpoints(harness: BookingHarness, outside: Receiver) -> None:
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


async def test_the_courier_runs_until_it_is_cancelled(
    harness: BookingHarness, courier: DeliveryWorker, outside: Receiver
) -> None:
    running = asyncio.create_task(courier.run())
    await told_once(harness, outside)
    courier.wake()
    async with asyncio.timeout(60):
        while not outside.received:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
