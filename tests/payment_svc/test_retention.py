"""Rows past their retention are deleted; a later duplicate of one has no second effect."""

from datetime import timedelta

from google.protobuf import wrappers_pb2

from mesh.db import idempotent
from mesh.ids import new_id
from payment_svc import housekeeping, inbound, tables
from payment_svc.webhooks import Outcome
from testing.payment_harness import SandboxHarness


async def store_one_of_each(harness: SandboxHarness) -> None:
    """A webhook of the provider, one of another sender, and an idempotency record."""
    await harness.open_paid()
    key = idempotent.key_for("RefundPayment", "staff", str(new_id()), wrappers_pb2.StringValue())
    async with harness.database.transaction() as connection:
        await inbound.receive(
            connection,
            sender="crm",
            content_type="application/json",
            body=str(new_id()).encode(),
            now=harness.clock(),
        )
        await idempotent.claim(
            connection,
            tables.idempotency_records,
            key,
            resource_id=new_id(),
            now=harness.clock(),
        )


async def counts(harness: SandboxHarness) -> list[int]:
    return [
        await harness.count(table)
        for table in (tables.webhook_inbox, tables.inbound_webhooks, tables.idempotency_records)
    ]


async def test_rows_are_deleted_after_their_retention(harness: SandboxHarness) -> None:
    await store_one_of_each(harness)
    harness.clock.advance(timedelta(days=3, seconds=-1).total_seconds())
    await housekeeping.sweep(harness.database, harness.clock)
    assert await counts(harness) == [1, 1, 1]
    harness.clock.advance(2)
    await housekeeping.sweep(harness.database, harness.clock)
    assert await counts(harness) == [1, 1, 0]
    harness.clock.advance(timedelta(days=177, seconds=-2).total_seconds())
    await housekeeping.sweep(harness.database, harness.clock)
    assert await counts(harness) == [1, 1, 0]
    await store_one_of_each(harness)
    harness.clock.advance(2)
    await housekeeping.sweep(harness.database, harness.clock)
    # The newer rows.
    assert await counts(harness) == [1, 1, 1]


async def test_a_duplicate_of_a_deleted_webhook_changes_nothing(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open_paid()
    harness.clock.advance(timedelta(days=181).total_seconds())
    await housekeeping.sweep(harness.database, harness.clock)
    assert await harness.count(tables.webhook_inbox) == 0
    before = await harness.find(payment)
    assert await harness.deliver() == [Outcome.UNCHANGED]
    assert await harness.find(payment) == before
    assert await harness.event_kinds() == ["captured"]
