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
from testing.booking_harness import World
from testing.webhook_receiver import Receiver, receiver

RULES = Rules(is_http_allowed=True, is_loopback_allowed=True)
OLD_KEY = "a key of thirty-two characters or more"
SEAL = SecretBox([OLD_KEY])


@pytest.fixture
async def outside() -> AsyncIterator[Receiver]:
    async with receiver() as here:
        yield here


@pytest.fixture
async def courier(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeliveryWorker]:
    monkeypatch.setattr(url_policy, "_RESOLVE_SECONDS", 60.0)
    async with a_courier(world) as courier:
        yield courier


def a_courier(world: World) -> AbstractAsyncContextManager[DeliveryWorker]:
    """One that no machine is too slow for."""
    return DeliveryWorker.open(
        world.database, world.clock, rules=RULES, seal=SEAL, attempt_seconds=60
    )


async def subscribe(world: World, url: str, *event_types: str) -> Endpoint:
    async with world.database.transaction() as connection:
        return await endpoints.create(
            connection,
            url=url,
            description="",
            event_types=event_types,
            rules=RULES,
            seal=SEAL,
            now=world.clock(),
        )


async def follow(world: World) -> None:
    """The follower has heard of everything."""
    events = BookingEvents(OutboxReader(world.database, tables.outbox))
    stream = events.open("")
    async with asyncio.timeout(60):
        _, batch = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    async with world.database.transaction() as connection:
        await consumer.apply(connection, batch, world.clock())


async def deliver(courier: DeliveryWorker) -> int:
    """Everything that is due is tried once. Returns how much it was."""
    count = await courier.start_due()
    await courier.idle()
    return count


async def log(world: World, endpoint: Endpoint) -> Sequence[Delivery]:
    async with world.database.reading() as connection:
        page = await deliveries.list_page(
            connection,
            endpoint_id=endpoint.endpoint_id,
            status=None,
            page_size=100,
            page_token="",
        )
    return page.deliveries


async def test_what_happens_is_told_signed_and_once(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(world, outside.url)
    booking = await world.place(await world.an_event(), quantity=2)
    await follow(world)
    await follow(world)
    assert await deliver(courier) == 1
    assert await deliver(courier) == 0
    [told] = outside.received
    assert told.is_signed_by(endpoint.new_secret)
    assert not told.is_signed_by(signature.new_secret())
    assert told.headers["webhook-timestamp"] == str(int(world.clock().timestamp()))
    assert told.headers["content-type"] == "application/json"
    assert told.headers["host"] == f"127.0.0.1:{outside.port}"
    assert told.headers[":request"] == "POST /hooks?of=boxoffice HTTP/1.1"
    assert told.content["type"] == "booking.held"
    data = told.content["data"]
    assert data["booking"]["bookingId"] == str(booking.booking_id)
    assert data["booking"]["total"] == {"currencyCode": "INR", "amountMinor": "300000"}
    [delivery] = await log(world, endpoint)
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
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    everything = await subscribe(world, outside.url, "*", "booking.held")
    confirmed = await subscribe(world, outside.url, "booking.confirmed")
    off = await subscribe(world, outside.url)
    await change(world, off, is_enabled=False)
    booking = await world.place(await world.an_event())
    await world.capture(booking)
    await world.settle()
    await follow(world)
    await deliver(courier)
    assert len(await log(world, everything)) == 2
    assert [each.event_type for each in await log(world, confirmed)] == ["booking.confirmed"]
    assert await log(world, off) == ()
    ids = [told.headers["webhook-id"] for told in outside.received]
    assert (len(ids), len(set(ids))) == (3, 2)


async def change(world: World, endpoint: Endpoint, **changes: object) -> Endpoint:
    values: dict[str, object] = {
        "url": None, "description": None, "event_types": (), "is_enabled": None, **changes,
    }  # fmt: skip
    async with world.database.transaction() as connection:
        return await endpoints.update(
            connection,
            endpoint_id=endpoint.endpoint_id,
            rules=RULES,
            now=world.clock(),
            **values,  # type: ignore[arg-type]
        )


async def told_once(world: World, outside: Receiver, *event_types: str) -> Endpoint:
    """An endpoint with one message on its way."""
    endpoint = await subscribe(world, outside.url, *event_types)
    await world.place(await world.an_event())
    await follow(world)
    return endpoint


@pytest.mark.parametrize("answer", ["500 No", "404 No", "302 Moved", "429 Later", None])
async def test_what_is_not_taken_is_tried_again_with_the_same_id(
    world: World, courier: DeliveryWorker, outside: Receiver, answer: str | None
) -> None:
    endpoint = await told_once(world, outside)
    outside.answers = [answer, answer]
    for _ in range(2):
        assert await deliver(courier) == 1
        assert await deliver(courier) == 0
        world.clock.advance(timedelta(minutes=2))
    assert await deliver(courier) == 1
    assert len({told.headers["webhook-id"] for told in outside.received}) == 1
    # Signed afresh each time: a receiver refuses a message of long ago.
    assert len({told.headers["webhook-timestamp"] for told in outside.received}) == 3
    assert all(told.is_signed_by(endpoint.new_secret) for told in outside.received)
    [delivery] = await log(world, endpoint)
    assert (delivery.status, delivery.attempt_count) == (Status.DELIVERED, 3)


async def test_it_is_tried_for_three_days_and_given_up(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    outside.answers = ["500 No"] * 50
    began, tries = world.clock.now, 0
    while (delivery := (await log(world, endpoint))[0]).due_time is not None:
        world.clock.now = delivery.due_time
        tries += await deliver(courier)
    assert tries == len(deliveries.PAUSES) + 1
    assert timedelta(days=2.9) < world.clock.now - began < timedelta(days=3.4)
    assert (delivery.status, delivery.attempt_count) == (Status.FAILED, tries)
    assert {attempt.status_code for attempt in delivery.attempts} == {500}


async def test_a_redirect_is_not_followed(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    outside.answers = [f"307 Go\r\nlocation: http://127.0.0.1:{outside.port}/elsewhere"]
    await deliver(courier)
    assert len(outside.received) == 1
    assert [each.status_code for each in (await log(world, endpoint))[0].attempts] == [307]


async def test_gone_means_gone(world: World, courier: DeliveryWorker, outside: Receiver) -> None:
    endpoint = await told_once(world, outside)
    outside.answers = ["410 Gone"]
    await deliver(courier)
    [delivery] = await log(world, endpoint)
    assert delivery.status is Status.FAILED
    async with world.database.reading() as connection:
        now = await endpoints.get(connection, endpoint_id=endpoint.endpoint_id, now=world.clock())
    assert (now.is_enabled, now.disable_reason) == (False, "the endpoint is gone (410)")
    with pytest.raises(DomainError) as refused:
        await resend(world, endpoint, delivery)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    await change(world, endpoint, is_enabled=True)
    await resend(world, endpoint, delivery)
    assert await deliver(courier) == 1
    assert (await log(world, endpoint))[0].status is Status.DELIVERED


async def resend(world: World, endpoint: Endpoint, delivery: Delivery) -> Delivery:
    async with world.database.transaction() as connection:
        return await deliveries.resend(
            connection,
            endpoint_id=endpoint.endpoint_id,
            delivery_id=delivery.delivery_id,
            now=world.clock(),
        )


async def test_an_address_is_looked_at_before_every_try(world: World, outside: Receiver) -> None:
    """The endpoint was let in when loopback was allowed; the courier does not go there."""
    endpoint = await told_once(world, outside)
    strict = Rules(is_http_allowed=True)
    async with DeliveryWorker.open(world.database, world.clock, rules=strict, seal=SEAL) as courier:
        await deliver(courier)
    assert outside.connections == 0
    [delivery] = await log(world, endpoint)
    assert [attempt.error for attempt in delivery.attempts] == ["the URL is not allowed"]
    assert delivery.status is Status.PENDING


async def test_an_endpoint_that_hangs_keeps_nobody_else_waiting(
    world: World, outside: Receiver
) -> None:
    async with AsyncExitStack() as stack:
        hanging = await stack.enter_async_context(receiver())
        hanging.is_hanging = True
        courier = await stack.enter_async_context(
            DeliveryWorker.open(
                world.database, world.clock, rules=RULES, seal=SEAL, attempt_seconds=10
            )
        )
        slow = await subscribe(world, hanging.url)
        quick = await subscribe(world, outside.url)
        event = await world.an_event()
        for _ in range(8):
            await world.place(event)
        await follow(world)
        async with asyncio.timeout(60):
            while len(outside.received) < 8:
                await courier.start_due()
                await asyncio.sleep(0.01)
        # Four at a time, and none of them has an answer yet or was tried twice.
        assert hanging.connections <= 4
        await courier.idle()
        assert {each.status for each in await log(world, quick)} == {Status.DELIVERED}
        assert {each.status for each in await log(world, slow)} == {Status.PENDING}
        errors = {attempt.error for each in await log(world, slow) for attempt in each.attempts}
        assert errors <= {"TimeoutError", "ReadTimeout"}


async def test_two_secrets_sign_while_a_receiver_changes_over(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    rotated = await rotate(world, endpoint, timedelta(hours=1))
    await deliver(courier)
    [told] = outside.received
    assert told.is_signed_by(endpoint.new_secret)
    assert told.is_signed_by(rotated.new_secret)
    world.clock.advance(timedelta(hours=1))
    await resend(world, endpoint, (await log(world, endpoint))[0])
    await deliver(courier)
    assert not outside.received[1].is_signed_by(endpoint.new_secret)
    assert outside.received[1].is_signed_by(rotated.new_secret)


async def rotate(world: World, endpoint: Endpoint, overlap: timedelta) -> Endpoint:
    async with world.database.transaction() as connection:
        return await endpoints.rotate_secret(
            connection,
            endpoint_id=endpoint.endpoint_id,
            overlap=overlap,
            seal=SEAL,
            now=world.clock(),
        )


async def test_there_are_never_more_than_four_secrets(world: World, outside: Receiver) -> None:
    endpoint = await subscribe(world, outside.url)
    made = [endpoint.new_secret]
    for _ in range(6):
        rotated = await rotate(world, endpoint, timedelta(days=1))
        made.append(rotated.new_secret)
    assert await in_force(world, endpoint) == made[:-5:-1]
    rotated = await rotate(world, endpoint, timedelta(0))
    assert await in_force(world, endpoint) == [rotated.new_secret]


async def in_force(world: World, endpoint: Endpoint, seal: SecretBox = SEAL) -> Sequence[str]:
    async with world.database.reading() as connection:
        return await endpoints.signing_secrets(
            connection, endpoint_id=endpoint.endpoint_id, seal=seal, now=world.clock()
        )


async def stored(world: World) -> Sequence[str]:
    """The secrets as whoever reads the database sees them."""
    async with world.database.reading() as connection:
        found = await connection.execute(
            sa.select(webhook_secrets.c.secret).order_by(webhook_secrets.c.secret_id)
        )
    return found.scalars().all()


async def reseal(world: World, seal: SecretBox) -> int:
    async with world.database.transaction() as connection:
        return await endpoints.reseal(connection, seal=seal)


async def test_the_database_does_not_tell_the_secrets(world: World, outside: Receiver) -> None:
    endpoint = await subscribe(world, outside.url)
    [sealed] = await stored(world)
    assert signature.PREFIX not in sealed
    assert endpoint.new_secret.removeprefix(signature.PREFIX) not in sealed
    with pytest.raises(UnknownKeyError):
        await in_force(world, endpoint, SecretBox(["k" * 32]))


async def test_nor_does_the_answer_that_is_kept_for_a_repetition(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    servicer = WebhookEndpointServicer(
        database=world.database,
        writes=world.writes,
        courier=courier,
        rules=RULES,
        seal=SEAL,
        clock=world.clock,
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
    async with world.database.reading() as connection:
        kept = await connection.scalar(sa.select(idempotency_records.c.response))
    assert isinstance(kept, bytes)
    assert first.secret.encode() not in kept


async def test_secrets_of_before_there_was_a_key_are_sealed(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    """They sign before and after, and none is lost."""
    endpoint = await told_once(world, outside)
    async with world.database.transaction() as connection:
        await connection.execute(sa.update(webhook_secrets).values(secret=endpoint.new_secret))
    assert await in_force(world, endpoint) == [endpoint.new_secret]
    assert [await reseal(world, SEAL) for _ in range(2)] == [1, 0]
    assert endpoint.new_secret not in await stored(world)
    await deliver(courier)
    assert outside.received[0].is_signed_by(endpoint.new_secret)


async def test_a_key_is_replaced_by_a_newer_one(world: World, outside: Receiver) -> None:
    endpoint = await subscribe(world, outside.url)
    older, newer = OLD_KEY, "a newer key, also of 32 characters"
    both = SecretBox([newer, older])
    assert await in_force(world, endpoint, both) == [endpoint.new_secret]
    assert [await reseal(world, both) for _ in range(2)] == [1, 0]
    assert await in_force(world, endpoint, SecretBox([newer])) == [endpoint.new_secret]
    with pytest.raises(UnknownKeyError):
        await reseal(world, SecretBox([older]))


async def test_a_process_that_dies_leaves_its_messages_to_others(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    async with world.database.transaction() as connection:
        [late] = await deliveries.lease_due(
            connection, now=world.clock(), limit=9, per_endpoint=9, busy=[]
        )
    assert await deliver(courier) == 0
    world.clock.advance(deliveries.LEASE)
    assert await deliver(courier) == 1
    # The outcome of the first process comes after its lease has ended.
    async with world.database.transaction() as connection:
        attempt = deliveries.Attempt(world.clock(), 500, "", 1)
        await deliveries.record_attempt(
            connection, leased=late, attempt=attempt, is_final=True, jitter=0, now=world.clock()
        )
    assert [each.status for each in await log(world, endpoint)] == [Status.DELIVERED]


async def test_an_outcome_after_another_process_leased_the_message_is_refused(
    world: World, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)

    async def lease() -> deliveries.Leased:
        async with world.database.transaction() as connection:
            [leased] = await deliveries.lease_due(
                connection, now=world.clock(), limit=9, per_endpoint=9, busy=[]
            )
        return leased

    async def fail(leased: deliveries.Leased) -> Status:
        async with world.database.transaction() as connection:
            await deliveries.record_attempt(
                connection,
                leased=leased,
                attempt=deliveries.Attempt(world.clock(), 500, "", 1),
                is_final=True,
                jitter=0,
                now=world.clock(),
            )
        [delivery] = await log(world, endpoint)
        return delivery.status

    late = await lease()
    world.clock.advance(deliveries.LEASE)
    current = await lease()
    assert [await fail(late), await fail(current)] == [Status.PENDING, Status.FAILED]


async def test_many_couriers_send_each_message_once(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await subscribe(world, outside.url)
    event = await world.an_event()
    for _ in range(10):
        await world.place(event)
    await follow(world)
    async with a_courier(world) as other:
        while sum(await asyncio.gather(deliver(courier), deliver(other))):
            pass
    assert {one.error for each in await log(world, endpoint) for one in each.attempts} == {""}
    ids = [told.headers["webhook-id"] for told in outside.received]
    assert len(ids) == len(set(ids)) == 10


async def test_the_log_is_kept_for_thirty_days(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    await deliver(courier)
    for later, left in ((timedelta(days=29), 1), (timedelta(days=2), 0)):
        world.clock.advance(later)
        async with world.database.transaction() as connection:
            await deliveries.forget(connection, now=world.clock())
        assert len(await log(world, endpoint)) == left


async def test_an_endpoint_that_is_deleted_takes_its_messages_along(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    endpoint = await told_once(world, outside)
    async with world.database.transaction() as connection:
        await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert await deliver(courier) == 0
    with pytest.raises(DomainError) as refused:
        async with world.database.transaction() as connection:
            await endpoints.delete(connection, endpoint_id=endpoint.endpoint_id)
    assert refused.value.reason is Reason.WEBHOOK_ENDPOINT_NOT_FOUND


async def test_there_is_a_limit_to_endpoints(world: World, outside: Receiver) -> None:
    for _ in range(endpoints.MAX_ENDPOINTS):
        await subscribe(world, outside.url)
    with pytest.raises(DomainError) as refused:
        await subscribe(world, outside.url)
    assert refused.value.reason is Reason.VALIDATION_FAILED


async def test_an_unknown_delivery_is_not_found(world: World, outside: Receiver) -> None:
    endpoint = await subscribe(world, outside.url)
    with pytest.raises(DomainError) as refused:
        async with world.database.transaction() as connection:
            await deliveries.resend(
                connection,
                endpoint_id=endpoint.endpoint_id,
                delivery_id=UUID(int=1),
                now=world.clock(),
            )
    assert refused.value.reason is Reason.WEBHOOK_DELIVERY_NOT_FOUND


async def test_the_courier_runs_until_it_is_cancelled(
    world: World, courier: DeliveryWorker, outside: Receiver
) -> None:
    running = asyncio.create_task(courier.run())
    await told_once(world, outside)
    courier.wake()
    async with asyncio.timeout(60):
        while not outside.received:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
