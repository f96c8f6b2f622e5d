"""Waiting lists with the real ledger: joining, offers in order, claims, ends, and every refusal."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest
import pytest_asyncio
import sqlalchemy as sa

from booking_svc.__main__ import apply_accounts
from booking_svc.bookings import customers
from booking_svc.bookings.bookings import Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import StaffStatus
from booking_svc.catalogue.events import Status as EventStatus
from booking_svc.clients.accounts import AccountEvents
from booking_svc.queueing import waiting_list, waiting_list_offers
from booking_svc.queueing.waiting_list_entries import MOVES, EndReason, State
from booking_svc.queueing.waiting_list_tables import waiting_list_entries as entries_table
from booking_svc.queueing.waiting_list_tables import waiting_lists
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from stock_svc import restocking
from stock_svc import tables as ledger_tables
from testing.booking_harness import HOLD, BookingHarness, an_offer
from testing.waiting_list_harness import GATHER, OFFER, WaitingListHarness
from tests.booking_svc.catalogue.test_catalogue import an_auditorium

Lists = WaitingListHarness


@pytest_asyncio.fixture
async def lists(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[Lists]:
    async with open_database("booking_svc") as database, open_database("stock_svc") as ledger:
        yield WaitingListHarness(BookingHarness(database, ledger))


async def refused(work: Awaitable[object]) -> DomainError:
    with pytest.raises(DomainError) as error:
        await work
    return error.value


def test_every_state_has_its_moves() -> None:
    assert MOVES.keys() == set(State)


async def test_a_cancelled_place_is_offered_held_and_claimed(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=2))
    first, _ = await lists.sell_out(event)
    entry = await lists.join(event)
    assert (entry.state, await lists.position(entry)) == (State.WAITING, 1)
    await lists.process.cancel(first.booking_id)
    await lists.process.run_until_idle()
    # Kept before it is offered, and held after.
    assert await lists.free(event) == (0, 1)
    assert (await refused(lists.process.place(event))).reason is Reason.SOLD_OUT
    await lists.turn(event)
    offered = await lists.entry(entry)
    assert offered.state is State.OFFERED
    assert offered.offer_expire_time == lists.process.clock() + OFFER
    assert await lists.position(entry) is None
    assert (await refused(lists.process.place(event))).reason is Reason.SOLD_OUT
    booking = await lists.claim(entry)
    assert booking.status is Status.HELD
    assert booking.hold_expire_time == lists.process.clock() + HOLD
    assert (booking.customer_id, booking.total.amount_minor) == (entry.customer_id, 150_000)
    again = await lists.claim(entry)
    assert again == await lists.process.booking(booking.booking_id)
    assert (await lists.entry(entry)).booking_id == booking.booking_id
    # The usual checkout follows, which extends the hold.
    paying = await lists.process.checkout(booking.booking_id)
    await lists.process.capture(paying)
    await lists.process.run_until_idle()
    assert (await lists.process.booking(booking.booking_id)).status is Status.CONFIRMED
    assert not await lists.process.audit(event)


async def test_a_claimed_booking_that_is_not_paid_gives_its_place_to_the_next(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    first, second = await lists.join(event), await lists.join(event)
    assert [await lists.position(entry) for entry in (first, second)] == [1, 2]
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    await lists.claim(first)
    lists.process.clock.advance(HOLD)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(first, second) == [State.CLAIMED, State.OFFERED]


async def test_an_offer_that_is_not_claimed_goes_on_to_the_next(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    first, second = await lists.join(event), await lists.join(event)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(first, second) == [State.OFFERED, State.WAITING]
    lists.process.clock.advance(OFFER)
    # Already before the job has seen it.
    late = await refused(lists.claim(first))
    assert late.reason is Reason.HOLD_EXPIRED
    await lists.turn(event)
    assert await lists.states(first, second) == [State.EXPIRED, State.OFFERED]
    assert (await lists.entry(first)).end_reason is EndReason.NOT_CLAIMED
    assert (await refused(lists.claim(first))).reason is Reason.HOLD_EXPIRED
    assert len(await lists.holds(event)) == 1
    lists.process.clock.advance(OFFER)
    await lists.turn(event)
    # Nobody waits any more: the place is on sale again.
    assert await lists.free(event) == (1, 0)
    await lists.process.place(event)


async def test_leaving_releases_an_offer(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    first, second = await lists.join(event), await lists.join(event)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    for _ in range(2):
        await lists.leave(first)
    assert (await lists.entry(first)).end_reason is EndReason.CUSTOMER
    assert not await lists.holds(event)
    assert await lists.free(event) == (0, 1)
    await lists.turn(event)
    assert await lists.states(first, second) == [State.LEFT, State.OFFERED]
    await lists.claim(second)
    assert (await refused(lists.leave(second))).reason is Reason.WAITING_LIST_STATE_INVALID
    error = await refused(lists.claim(first))
    assert (error.reason, error.metadata["state"]) == (Reason.WAITING_LIST_STATE_INVALID, "LEFT")


async def test_the_last_who_leaves_opens_the_sale(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    entry = await lists.join(event)
    await lists.leave(entry)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    assert await lists.free(event) == (1, 0)
    await lists.process.place(event)


async def test_refusals_hold_nothing(lists: Lists) -> None:
    event = await lists.process.an_event(
        an_offer(capacity=3, max_per_booking=2, per_customer_limit=5),
        an_offer(name="Balcony", pool="b", capacity=2, per_customer_limit=1, max_per_booking=2),
    )
    floor, balcony = (offer.offer_id for offer in event.offers)
    available = await refused(lists.join(event))
    assert available.reason is Reason.PLACES_AVAILABLE
    await lists.sell_out(event)
    too_many = await refused(lists.join(event, 3))
    assert [violation.field for violation in too_many.violations] == ["items[0].quantity"]
    twice = await refused(lists.join(event, items=[(floor, 1), (floor, 1)]))
    assert [violation.field for violation in twice.violations] == ["items[1].offer_id"]
    never = await refused(lists.join(event, items=[(floor, 1), (balcony, 3)]))
    assert [violation.field for violation in never.violations] == ["items[1].quantity"]
    limit = await refused(lists.join(event, items=[(floor, 1), (balcony, 2)]))
    assert limit.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert (await refused(lists.join(event, items=[(new_id(), 1)]))).reason is (
        Reason.OFFER_NOT_FOUND
    )
    assert not await lists.all_entries(event)
    entry = await lists.join(event, 2)
    other = await refused(lists.join(event, 1, customer_id=entry.customer_id))
    assert other.reason is Reason.ALREADY_WAITING
    assert other.metadata["entry_id"] == str(entry.entry_id)
    assert await lists.join(event, 2, customer_id=entry.customer_id) == entry
    for work in (
        lists.claim(entry, customer_id=new_id()),
        lists.leave(entry, owner=new_id()),
    ):
        assert (await refused(work)).reason is Reason.WAITING_LIST_ENTRY_NOT_FOUND
    early = await refused(lists.claim(entry))
    assert early.metadata["state"] == "WAITING"
    lists.process.clock.advance(timedelta(days=30))
    assert (await refused(lists.join(event))).reason is Reason.SALE_NOT_ACTIVE
    await lists.turn(event)
    assert (await lists.entry(entry)).end_reason is EndReason.SALE_ENDED
    assert not await lists.holds(event)


async def test_a_group_larger_than_the_pool_of_its_offers_cannot_join(lists: Lists) -> None:
    event = await lists.process.an_event(
        an_offer(name="Adult", capacity=4), an_offer(name="Child", capacity=None)
    )
    adult, child = (offer.offer_id for offer in event.offers)
    await lists.sell_out(event)
    never = await refused(lists.join(event, items=[(adult, 3), (child, 2)]))
    assert never.reason is Reason.VALIDATION_FAILED
    [violation] = never.violations
    assert violation.field == "items[1].quantity"
    assert violation.description == (
        "'Adult' and 'Child' share 4 places; with this item the group needs 5"
    )
    [alone] = (await refused(lists.join(event, items=[(child, 5)]))).violations
    assert alone.description == "'Child' has 4 places; with this item the group needs 5"
    assert not await lists.all_entries(event)
    entry = await lists.join(event, items=[(adult, 3), (child, 1)])
    assert entry.state is State.WAITING


async def test_a_pool_gathers_for_a_time_also_for_customers_who_leave_and_rejoin(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=3))
    sold = [await lists.process.place(event) for _ in range(3)]
    for booking in sold[1:]:
        await lists.process.capture(booking)
    in_turn = [await lists.join(event, 3), await lists.join(event, 3)]
    await lists.process.cancel(sold[0].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    for _ in range(3):
        assert await lists.free(event) == (0, 1)
        lists.process.clock.advance(GATHER / 3)
        await lists.leave(in_turn[0])
        in_turn = [in_turn[1], await lists.join(event, 3, customer_id=in_turn[0].customer_id)]
        await lists.turn(event)
    assert await lists.free(event) == (1, 0)
    assert set(await lists.states(*in_turn)) == {State.WAITING}
    await lists.process.place(event)


@pytest.mark.parametrize("is_gathered", [True, False])
async def test_a_customer_behind_a_thousand_groups_gets_the_place(
    lists: Lists, is_gathered: bool
) -> None:
    event = await lists.process.an_event(
        an_offer(capacity=4), an_offer(name="Balcony", pool="b", capacity=1)
    )
    floor, balcony = (offer.offer_id for offer in event.offers)
    sold = [await lists.process.place(event) for _ in range(4)]
    for booking in sold[1:]:
        await lists.process.capture(booking)
    up_there = await lists.process.place(
        event, items=[RequestedItem(balcony, 1, None)], checkout=None
    )
    group = await lists.join(event, 4)
    others = {"entry_id", "customer_id", "number"}
    columns = [column for column in entries_table.c if column.name not in others]
    numbers = sa.func.generate_series(2, 2_500).table_valued("number").render_derived()
    copies = sa.select(
        sa.func.gen_random_uuid(), sa.func.gen_random_uuid(), numbers.c.number, *columns
    ).select_from(entries_table.join(numbers, sa.true()))
    async with lists.process.database.transaction() as connection:
        await connection.execute(
            sa.insert(entries_table).from_select(
                ["entry_id", "customer_id", "number", *(column.name for column in columns)], copies
            )
        )
        await connection.execute(sa.update(waiting_lists).values(last_number=2_500))
    single = await lists.join(event, items=[(floor if is_gathered else balcony, 1)])
    assert await lists.position(single) == 2_501
    back = sold[0] if is_gathered else up_there
    await lists.process.cancel(back.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    if is_gathered:
        assert await lists.states(single) == [State.WAITING]
        lists.process.clock.advance(GATHER)
        await lists.turn(event)
    assert await lists.states(group, single) == [State.WAITING, State.OFFERED]


async def test_a_claim_of_anothers_offer_is_not_found_and_leaves_it(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    entry = await lists.join(event)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    error = await refused(lists.claim(entry, customer_id=new_id()))
    assert error.reason is Reason.WAITING_LIST_ENTRY_NOT_FOUND
    assert (await lists.entry(entry)).state is State.OFFERED
    assert len(await lists.holds(event)) == 1


async def test_a_smaller_group_does_not_pass_a_bigger_one_while_places_gather(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=4))
    sold = await lists.sell_out(event)
    big, small = await lists.join(event, 3), await lists.join(event, 1)
    await lists.process.cancel(sold[0].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(big, small) == [State.WAITING, State.WAITING]
    lists.process.clock.advance(GATHER / 3)
    for booking in sold[1:3]:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(big, small) == [State.OFFERED, State.WAITING]


async def test_after_the_gathering_those_behind_are_served_and_the_group_keeps_its_place(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=4), sale_end_time=None)
    sold = [await lists.process.place(event) for _ in range(4)]
    for booking in sold:
        await lists.process.capture(booking)
    await lists.process.run_until_idle()
    big, small, last = (
        await lists.join(event, 3),
        await lists.join(event, 1),
        await lists.join(event, 3),
    )
    await lists.process.cancel(sold[0].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    lists.process.clock.advance(GATHER)
    await lists.turn(event)
    assert await lists.states(big, small, last) == [State.WAITING, State.OFFERED, State.WAITING]
    assert [await lists.position(entry) for entry in (big, last)] == [1, 2]
    # The next places gather anew for the group in front.
    await lists.process.cancel(sold[1].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    lists.process.clock.advance(GATHER - timedelta(seconds=1))
    await lists.turn(event)
    assert await lists.free(event) == (0, 1)
    lists.process.clock.advance(timedelta(seconds=1))
    await lists.turn(event)
    # It fits nobody: no place stays empty for longer than the gathering.
    assert await lists.free(event) == (1, 0)
    await lists.process.place(event)
    assert await lists.states(big, small, last) == [State.WAITING, State.OFFERED, State.WAITING]


async def test_the_mixed_group_takes_all_or_nothing(lists: Lists) -> None:
    event = await lists.process.an_event(
        an_offer(capacity=1), an_offer(name="Balcony", pool="b", capacity=1)
    )
    floor, balcony = (offer.offer_id for offer in event.offers)
    on_floor = await lists.process.place(event, checkout=None)
    on_balcony = await lists.process.place(
        event, items=[RequestedItem(balcony, 1, None)], checkout=None
    )
    both = await lists.join(event, items=[(floor, 1), (balcony, 1)])
    await lists.process.cancel(on_floor.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(both) == [State.WAITING]
    await lists.process.cancel(on_balcony.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    booking = await lists.claim(both)
    assert {item.offer_id for item in booking.items} == {floor, balcony}


async def test_seats_are_offered_next_to_each_other(lists: Lists) -> None:
    auditorium = await an_auditorium(lists.process)
    event = await lists.process.an_event(
        an_offer(name="Regular", pool="r", capacity=None, seat_type="REGULAR"),
        auditorium_id=auditorium.auditorium_id,
    )
    [regular] = event.offers
    regular_seats = [
        seat.seat_id for row in auditorium.rows for seat in row.seats if seat.seat_type == "REGULAR"
    ]
    bookings = [
        await lists.process.place(event, items=[RequestedItem(None, 1, seat_id)], checkout=None)
        for seat_id in regular_seats
    ]
    entry = await lists.join(event, 2)
    for booking in bookings:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    assert (
        await refused(lists.process.place(event, items=[RequestedItem(None, 1, regular_seats[0])]))
    ).reason is Reason.SOLD_OUT
    await lists.turn(event)
    booking = await lists.claim(entry)
    assert [item.offer_id for item in booking.items] == [regular.offer_id] * 2
    assert len({item.seat_id for item in booking.items}) == 2


async def test_no_offer_while_the_event_is_paused_and_all_end_with_its_cancellation(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=2))
    sold = await lists.sell_out(event)
    await lists.process.run_until_idle()
    first, second = await lists.join(event), await lists.join(event)
    commands = lists.process.commands
    await lists.process.cancel(sold[0].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    # A sold-out event is paused as any other.
    paused, _ = await commands.set_status(event_id=event.event_id, to=EventStatus.PAUSED)
    assert paused.staff_status is StaffStatus.PAUSED
    await lists.process.cancel(sold[1].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(first, second) == [State.OFFERED, State.WAITING]
    assert (await refused(lists.claim(first))).reason is Reason.SALE_NOT_ACTIVE
    await commands.set_status(event_id=event.event_id, to=EventStatus.ON_SALE)
    await lists.turn(event)
    assert await lists.states(first, second) == [State.OFFERED, State.OFFERED]
    await lists.process.cancel_event(event)
    await lists.turn(event)
    assert await lists.states(first, second) == [State.EXPIRED, State.EXPIRED]
    assert (await lists.entry(first)).end_reason is EndReason.EVENT_CANCELLED
    assert not await lists.holds(event)
    assert await lists.free(event) == (2, 0)


async def test_an_erased_account_leaves_its_lists(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    first, second = await lists.join(event), await lists.join(event)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    async with lists.process.database.transaction() as connection:
        await waiting_list.erase(connection, user_id=first.customer_id, now=lists.process.clock())
    await lists.turn(event)
    assert await lists.states(first, second) == [State.LEFT, State.OFFERED]


class Stream:
    """A stub of auth_svc's stream with one batch."""

    def __init__(self, *events: stream_pb2.AuthEvent) -> None:
        self._batch = stream_pb2.StreamEventsResponse(events=events)

    async def StreamEvents(
        self, _: stream_pb2.StreamEventsRequest, **_options: object
    ) -> AsyncIterator[stream_pb2.StreamEventsResponse]:
        yield self._batch


async def test_a_deleted_account_leaves_its_lists_and_keeps_its_address(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    first, second, third = [await lists.join(event) for _ in range(3)]
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    accounts = AccountEvents(
        Stream(  # type: ignore[arg-type]
            stream_pb2.AuthEvent(
                user_changed=stream_pb2.UserChanged(
                    user_id=str(first.customer_id), email="mira@example.org"
                )
            ),
            *(
                stream_pb2.AuthEvent(
                    position="2",
                    user_deleted=stream_pb2.UserDeleted(user_id=str(entry.customer_id)),
                )
                for entry in (first, second)
            ),
        )
    )
    async for _, changes in accounts.open(""):
        async with lists.process.database.transaction() as connection:
            await apply_accounts(connection, changes, lists.process.clock())
    await lists.turn(event)
    assert await lists.states(first, second, third) == [State.LEFT, State.LEFT, State.OFFERED]
    assert (await lists.entry(first)).end_reason is EndReason.ACCOUNT_ERASED
    async with lists.process.database.reading() as connection:
        assert await customers.find(connection, user_id=first.customer_id) is not None


async def test_a_customer_above_the_limit_cannot_join_or_is_passed_by(lists: Lists) -> None:
    event = await lists.process.an_event(
        an_offer(capacity=2, per_customer_limit=1),
        an_offer(name="Balcony", pool="b", capacity=5),
        per_customer_limit=1,
    )
    mine, theirs = await lists.sell_out(event)
    error = await refused(lists.join(event, customer_id=mine.customer_id))
    assert (error.reason, error.metadata["owned"]) == (Reason.PURCHASE_LIMIT_EXCEEDED, "1")
    first, second = await lists.join(event), await lists.join(event)
    # The first buys another place of the event meanwhile.
    await lists.process.place(
        event,
        items=[RequestedItem(event.offers[1].offer_id, 1, None)],
        customer_id=first.customer_id,
    )
    await lists.process.cancel(theirs.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(first, second) == [State.EXPIRED, State.OFFERED]
    assert (await lists.entry(first)).end_reason is EndReason.PURCHASE_LIMIT


async def test_restocked_places_are_offered_in_order_and_the_rest_is_sold(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=3))
    await lists.sell_out(event)
    waiting = [await lists.join(event, quantity) for quantity in (2, 1, 3)]
    async with lists.process.ledger.transaction() as connection:
        await restocking.restock(
            connection,
            event_id=event.event_id,
            pool_id=event.offers[0].pool_id,
            quantity=9,
            now=lists.process.clock(),
        )
    assert (await refused(lists.process.place(event))).reason is Reason.SOLD_OUT
    await lists.turn(event)
    assert await lists.states(*waiting) == [State.OFFERED] * 3
    assert await lists.free(event) == (3, 0)


async def test_the_job_follows_joins_and_stock_and_clears_its_failure(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    entry = await lists.join(event)
    assert lists.woken == 1
    assert await waiting_list_offers.run_due(lists.deps) == 1
    assert await waiting_list_offers.run_due(lists.deps) == 0
    async with lists.process.database.reading() as connection:
        since = await waiting_list_offers.oldest_due(connection)
    assert since is not None
    assert since > lists.process.clock()
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    lists.process.clock.advance(timedelta(seconds=30))
    assert await waiting_list_offers.run_due(lists.deps) == 1
    assert await lists.states(entry) == [State.OFFERED]
    await lists.leave(entry)
    assert await waiting_list_offers.run_due(lists.deps) == 1
    lists.process.clock.advance(timedelta(days=1))
    assert await waiting_list_offers.run_due(lists.deps) == 0


async def test_concurrent_claims_and_turns_make_one_booking(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    [held] = await lists.sell_out(event)
    entry, _ = await lists.join(event), await lists.join(event)
    await lists.process.cancel(held.booking_id)
    await lists.process.run_until_idle()
    other = WaitingListHarness(lists.process.another_process())
    await asyncio.gather(lists.turn(event), other.turn(event))
    bookings = await asyncio.gather(lists.claim(entry), other.claim(entry), lists.claim(entry))
    assert len({booking.booking_id for booking in bookings}) == 1
    assert len(await lists.holds(event)) == 1
    assert not await lists.process.audit(event)


async def test_one_customer_joins_once(lists: Lists) -> None:
    event = await lists.process.an_event(an_offer(capacity=1))
    await lists.sell_out(event)
    customer_id = new_id()
    joined = await asyncio.gather(*(lists.join(event, customer_id=customer_id) for _ in range(4)))
    assert len({entry.entry_id for entry in joined}) == 1
    assert len(await lists.all_entries(event)) == 1


async def test_seats_of_several_prices_are_offered_once(lists: Lists) -> None:
    auditorium = await an_auditorium(lists.process)
    event = await lists.process.an_event(
        an_offer(name="Adult", pool=None, capacity=None, seat_type="REGULAR"),
        an_offer(
            name="Child",
            pool=None,
            capacity=None,
            seat_type="REGULAR",
            price=Money(40_000, "INR"),
        ),
        auditorium_id=auditorium.auditorium_id,
    )
    adult, child = (offer.offer_id for offer in event.offers)
    bookings = [
        await lists.process.place(
            event, items=[RequestedItem(child, 1, seat.seat_id)], checkout=None
        )
        for seat in auditorium.rows[0].seats
    ]
    family = await lists.join(event, items=[(adult, 1), (child, 1)])
    later = await lists.join(event, items=[(child, 1)])
    for booking in bookings:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(family, later) == [State.OFFERED, State.WAITING]
    claimed = await lists.claim(family)
    assert [item.offer_id for item in claimed.items] == [adult, child]
    assert len({item.seat_id for item in claimed.items}) == 2
    assert claimed.total == Money(190_000, "INR")
    assert await lists.process.audit(event) == ()


async def test_offered_seats_are_claimed_at_their_price_when_another_offer_sells_them_too(
    lists: Lists,
) -> None:
    auditorium = await an_auditorium(lists.process)
    event = await lists.process.an_event(
        an_offer(name="Adult", pool=None, capacity=None, seat_type="REGULAR"),
        auditorium_id=auditorium.auditorium_id,
    )
    [adult] = event.offers
    bookings = [
        await lists.process.place(
            event, items=[RequestedItem(None, 1, seat.seat_id)], checkout=None
        )
        for seat in auditorium.rows[0].seats
    ]
    entry = await lists.join(event, 2)
    for booking in bookings:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    child = OfferChange(name="Child", price=Money(40_000, "INR"), seat_type="REGULAR")
    await lists.process.commands.update(
        event_id=event.event_id, change=EventChange(offers=(child,)), etag=None
    )
    claimed = await lists.claim(entry)
    assert [item.offer_id for item in claimed.items] == [adult.offer_id] * 2
    assert claimed.total == Money(300_000, "INR")


async def test_an_offer_is_claimed_in_full_when_the_limit_per_booking_was_lowered(
    lists: Lists,
) -> None:
    event = await lists.process.an_event(an_offer(capacity=2))
    sold = await lists.sell_out(event)
    entry = await lists.join(event, 2)
    for booking in sold:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    lower = OfferChange(offer_id=event.offers[0].offer_id, max_per_booking=1)
    await lists.process.commands.update(
        event_id=event.event_id, change=EventChange(offers=(lower,)), etag=None
    )
    claimed = await lists.claim(entry)
    assert [item.quantity for item in claimed.items] == [2]
    assert not await lists.process.audit(event)


@pytest.mark.parametrize("reason", [Reason.VALIDATION_FAILED, Reason.OFFER_NOT_FOUND])
async def test_an_entry_that_the_ledger_refuses_for_good_stops_nobody(
    lists: Lists, reason: Reason
) -> None:
    event = await lists.process.an_event(
        an_offer(name="Adult", capacity=3), an_offer(name="Child", capacity=None)
    )
    adult, child = (offer.offer_id for offer in event.offers)
    sold = await lists.sell_out(event)
    first = await lists.join(event, items=[(adult, 1)])
    second = await lists.join(event, items=[(child, 1)])
    columns = ledger_tables.offers.c
    # The ledger's terms of an offer differ from the catalogue's.
    async with lists.process.ledger.transaction() as connection:
        if reason is Reason.VALIDATION_FAILED:
            await connection.execute(
                sa.update(ledger_tables.offers).where(columns.offer_id == adult).values(seated=True)
            )
        else:
            await connection.execute(
                sa.update(ledger_tables.offers)
                .where(columns.offer_id == adult)
                .values(offer_id=new_id())
            )
    for booking in sold[:2]:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await waiting_list_offers.run_due(lists.deps)
    assert await lists.states(first, second) == [State.WAITING, State.OFFERED]
    # What nobody else waits for is open to everybody, and the list is at rest.
    assert await lists.free(event) == (1, 0)
    await waiting_list_offers.run_due(lists.deps)
    assert not await lists.is_due(event)
    third = await lists.join(event, items=[(child, 2)])
    await lists.process.cancel(sold[2].booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(first, third) == [State.WAITING, State.OFFERED]


async def test_a_pool_is_not_kept_for_ever_behind_one_that_is_sold_out(lists: Lists) -> None:
    event = await lists.process.an_event(
        an_offer(capacity=1), an_offer(name="Balcony", pool="b", capacity=3)
    )
    floor, balcony = (offer.offer_id for offer in event.offers)
    await lists.process.capture(await lists.process.place(event))
    await lists.process.run_until_idle()
    first = await lists.join(event)
    both = await lists.join(event, items=[(floor, 1), (balcony, 1)])
    bought = await lists.process.place(
        event, items=[RequestedItem(balcony, 3, None)], checkout=None
    )
    await lists.process.cancel(bought.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.free(event) == (0, 3)
    lists.process.clock.advance(GATHER)
    await lists.turn(event)
    assert await lists.free(event) == (3, 0)
    assert await lists.states(first, both) == [State.WAITING, State.WAITING]
    await lists.process.place(event, items=[RequestedItem(balcony, 3, None)])
