"""A waiting room from its creation to the last admission, on a real database."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc.bookings.bookings import Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue.event_update import EventChange
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.events import Status as EventStatus
from booking_svc.catalogue.tables import events as events_table
from booking_svc.queueing import proof_of_work
from booking_svc.queueing.draw import Draw, commitment_of
from booking_svc.queueing.queues import Position
from booking_svc.queueing.room_memory import FRESH
from booking_svc.queueing.standing import State
from booking_svc.queueing.tokens import AdmissionToken, Signer
from booking_svc.queueing.waiting_rooms import RoomState
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import BookingHarness
from testing.queue_harness import KEYS, SESSION, TERMS, QueueHarness, an_event_with_room


@pytest.fixture
def queueing(harness: BookingHarness) -> QueueHarness:
    return QueueHarness.of(harness)


async def refusal_of(work: Awaitable[Any]) -> DomainError:
    with pytest.raises(DomainError) as refusal:
        await work
    return refusal.value


async def an_open_room(harness: BookingHarness, queueing: QueueHarness, **terms: Any) -> Event:
    event = await an_event_with_room(harness, queueing, **terms)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    return event


async def an_admitted_customer(
    harness: BookingHarness, queueing: QueueHarness, **terms: Any
) -> tuple[Event, Any, Position]:
    """An event on sale, and a customer whose ticket is admitted."""
    event = await an_open_room(harness, queueing, **terms)
    customer = new_id()
    ticket = await queueing.join(event, customer)
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=5))
    admitted = await queueing.poll(ticket, customer)
    assert admitted.standing.state is State.ADMITTED
    assert admitted.token is not None
    return event, customer, admitted


async def test_from_the_first_visitor_to_a_booking(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing)
    early = await refusal_of(queueing.join(event))
    assert (early.reason, early.metadata["state"]) == (Reason.QUEUE_CLOSED, "SCHEDULED")
    commitment = (await queueing.queues.room(event_id=event.event_id, to_staff=False)).commitment

    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    customers = [new_id() for _ in range(20)]
    tickets = [await queueing.join(event, customer) for customer in customers]
    assert [ticket.ticket.number for ticket in tickets] == list(range(20))
    waiting = tickets[0].standing
    assert (waiting.state, waiting.position) == (State.WAITING, None)
    assert waiting.estimated_wait == timedelta(minutes=10)

    await queueing.open_sale(event)
    room = await queueing.queues.room(event_id=event.event_id, to_staff=False)
    assert room.secret is not None
    assert room.participants == 20
    assert room.commitment == commitment == commitment_of(room.secret)
    late = await queueing.join(event)
    assert late.standing.position == 21
    drawn = Draw(room.secret, event.event_id, 20)
    places = {}
    for ticket in tickets:
        polled = await queueing.poll(ticket)
        assert polled.standing.place == drawn.place_of(ticket.ticket.number)
        places[polled.standing.place] = ticket
    assert sorted(places) == list(range(20))

    # One a second.
    await queueing.advance(timedelta(seconds=3))
    harness.clock.advance(FRESH)
    states = [(await queueing.poll(places[place])).standing.state for place in range(5)]
    assert states == [State.ADMITTED] * 3 + [State.WAITING] * 2
    first = places[0]
    customer = customers[first.ticket.number]
    admitted = await queueing.poll(first, customer)
    assert admitted.token is not None
    booking = await harness.place(
        event, customer_id=customer, admission_token=admitted.token, checkout=None
    )
    assert booking.status is Status.HELD


async def test_an_account_has_one_ticket_even_if_it_joins_many_times_at_once(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    customer = new_id()
    other_process = QueueHarness(harness.database, harness.clock)
    tickets = await asyncio.gather(
        *(queue.join(event, customer) for queue in (queueing, other_process) * 10)
    )
    assert len({ticket.ticket_id for ticket in tickets}) == 1
    anonymous = await asyncio.gather(
        *(queue.join(event) for queue in (queueing, other_process) * 10)
    )
    # Dense: no number is left out, and none is given twice.
    assert sorted(ticket.ticket.number for ticket in anonymous) == list(range(1, 21))


async def test_polling_again_gives_the_same_admission_with_the_same_end(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    _, customer, admitted = await an_admitted_customer(harness, queueing)
    end = admitted.standing.expire_time
    assert end is not None
    restarted = QueueHarness(harness.database, harness.clock)
    for _ in range(3):
        harness.clock.advance(timedelta(minutes=2))
        for process in (queueing, restarted):
            again = await process.poll(admitted, customer)
            assert (again.token, again.standing.expire_time) == (admitted.token, end)
    harness.clock.now = end
    missed = await restarted.poll(admitted, customer)
    assert (missed.standing.state, missed.token) == (State.MISSED, None)


async def test_a_visitor_without_account_waits_and_signs_in_when_admitted(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event)
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=2))
    anonymous = await queueing.poll(ticket)
    assert (anonymous.standing.state, anonymous.token) == (State.ADMITTED, None)
    customer = new_id()
    assert (await queueing.poll(ticket, customer)).token is not None
    # The ticket has admitted one account: it is not for sale to a second.
    refused = await refusal_of(queueing.poll(ticket, new_id()))
    assert refused.reason is Reason.ALREADY_ADMITTED


async def test_an_account_is_admitted_once_with_whatever_tickets(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    first, second = await queueing.join(event), await queueing.join(event)
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=3))
    customer = new_id()
    assert (await queueing.poll(first, customer)).token is not None
    refused = await refusal_of(queueing.poll(second, customer))
    assert refused.reason is Reason.ALREADY_ADMITTED
    await queueing.store_reports()
    counts = await queueing.queues.refusals_of(event_id=event.event_id)
    assert counts == {"ALREADY_ADMITTED": 1}


async def test_placing_requires_an_admission_of_this_user_for_this_event(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event, customer, admitted = await an_admitted_customer(harness, queueing)
    assert admitted.token is not None
    assert admitted.standing.expire_time is not None
    other_event = AdmissionToken(new_id(), customer, 0, admitted.standing.expire_time)
    foreign_key = Signer(["another service's key, of 32 characters"])
    forged = foreign_key.sign_admission(replace(other_event, event_id=event.event_id))
    flipped = admitted.token[:-2] + ("AA" if admitted.token[-2:] != "AA" else "BA")
    cases = [
        (customer, "", "TOKEN_MISSING"),
        (customer, "nonsense", "TOKEN_FORGED"),
        (customer, "ä" * 80, "TOKEN_FORGED"),
        (customer, forged, "TOKEN_FORGED"),
        (customer, flipped, "TOKEN_FORGED"),
        # A ticket is no admission.
        (customer, admitted.ticket_id, "TOKEN_FORGED"),
        (customer, Signer(KEYS).sign_admission(other_event), "TOKEN_OF_OTHER_EVENT"),
        # Replayed by somebody else.
        (new_id(), admitted.token, "TOKEN_OF_OTHER_USER"),
    ]
    # By an event that is read, and by one from memory.
    for _ in range(2):
        for user, token, cause in cases:
            refused = await refusal_of(
                harness.place(event, customer_id=user, admission_token=token)
            )
            assert refused.reason is Reason.ADMISSION_REQUIRED
            assert refused.metadata["cause"] == cause
    assert await harness.available(event) == 100
    await harness.place(event, customer_id=customer, admission_token=admitted.token)
    harness.clock.now = admitted.standing.expire_time
    refused = await refusal_of(
        harness.place(event, customer_id=customer, admission_token=admitted.token)
    )
    assert refused.metadata["cause"] == "ADMISSION_EXPIRED"
    assert await harness.available(event) == 99
    await queueing.store_reports()
    counts = await queueing.queues.refusals_of(event_id=event.event_id)
    assert counts == {
        "TOKEN_MISSING": 2,
        "TOKEN_FORGED": 10,
        "TOKEN_OF_OTHER_EVENT": 2,
        "TOKEN_OF_OTHER_USER": 2,
        "ADMISSION_EXPIRED": 1,
    }


async def test_calls_without_admission_read_nothing(
    harness: BookingHarness, queueing: QueueHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    event, customer, admitted = await an_admitted_customer(harness, queueing)
    assert admitted.token is not None
    await harness.place(event, customer_id=customer, admission_token=admitted.token)
    statements = 0
    original = harness.deps.batch_writer.look_up

    async def counted(*arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return await original(*arguments)

    monkeypatch.setattr(harness.deps.batch_writer, "look_up", counted)
    for _ in range(50):
        await refusal_of(harness.place(event, admission_token=admitted.token))
    assert statements == 0
    # Once a second the event is read again: the room may have been removed.
    harness.clock.advance(timedelta(seconds=1))
    for _ in range(50):
        await refusal_of(harness.place(event, admission_token=admitted.token))
    assert statements == 1


async def test_a_repeated_call_gets_its_answer_after_the_end_of_the_admission(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event, customer, admitted = await an_admitted_customer(harness, queueing)
    call = {"customer_id": customer, "admission_token": admitted.token, "key": "k"}
    first = await harness.place(event, **call, checkout=None)
    assert admitted.standing.expire_time is not None
    harness.clock.now = admitted.standing.expire_time
    assert harness.clock.now < first.hold_expire_time
    again = await harness.place(event, **call, checkout=None)
    assert again.booking_id == first.booking_id


async def test_a_room_that_is_made_while_processes_know_the_event_without_it(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await harness.an_event(sale_start_time=harness.clock.now + timedelta(hours=1))
    # In memory, by a call that comes too early.
    assert (await refusal_of(harness.place(event))).reason is Reason.SALE_NOT_ACTIVE
    await queueing.queues.put_room(event_id=event.event_id, terms=TERMS)
    await queueing.open_sale(event)
    refused = await refusal_of(harness.place(event))
    assert refused.reason is Reason.ADMISSION_REQUIRED
    assert await harness.available(event) == 10


async def test_staff_need_no_admission(harness: BookingHarness, queueing: QueueHarness) -> None:
    event = await an_open_room(harness, queueing)
    await queueing.open_sale(event)
    booking = await harness.place(event, is_staff=True)
    assert booking.status is Status.PENDING_PAYMENT


async def test_more_places_need_an_admission_and_fewer_do_not(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event, customer, admitted = await an_admitted_customer(harness, queueing)
    token = admitted.token or ""
    booking = await harness.place(
        event, quantity=3, customer_id=customer, admission_token=token, checkout=None
    )
    offer = event.offers[0].offer_id

    def items(quantity: int) -> list[RequestedItem]:
        return [RequestedItem(offer, quantity, None)]

    refused = await refusal_of(harness.update(booking, items=items(4)))
    assert refused.metadata["cause"] == "TOKEN_MISSING"
    more = await harness.update(booking, items=items(4), admission_token=token)
    assert more.items[0].quantity == 4
    fewer = await harness.update(booking, items=items(2))
    assert fewer.items[0].quantity == 2


async def test_moving_a_booking_to_an_event_with_a_room_needs_an_admission(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    production = await harness.a_production()
    event = await harness.an_event(
        production_id=production, sale_start_time=harness.clock.now + timedelta(hours=1)
    )
    other = await harness.an_event(production_id=production)
    customer = new_id()
    booking = await harness.place(other, customer_id=customer)
    await harness.capture(booking)
    await harness.run_until_idle()
    await queueing.queues.put_room(event_id=event.event_id, terms=TERMS)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    ticket = await queueing.join(event, customer)
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=2))
    refused = await refusal_of(harness.reschedule(booking, event))
    assert refused.reason is Reason.ADMISSION_REQUIRED
    token = (await queueing.poll(ticket, customer)).token or ""
    moved = await harness.reschedule(booking, event, admission_token=token)
    assert moved.event_id == event.event_id


async def test_forged_and_foreign_tickets(harness: BookingHarness, queueing: QueueHarness) -> None:
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event, new_id())
    forger = Signer(["another service's key, of 32 characters"])
    forged = [
        "nonsense",
        ticket.ticket_id[:-1],
        ticket.ticket_id + "=",
        ("A" if ticket.ticket_id[30] != "A" else "B").join(
            (ticket.ticket_id[:30], ticket.ticket_id[31:])
        ),
        forger.sign_ticket(ticket.ticket),
    ]
    for text in forged:
        refused = await refusal_of(queueing.queues.position(ticket_id=text, user_id=None))
        assert refused.reason is Reason.QUEUE_TICKET_NOT_FOUND
    refused = await refusal_of(queueing.poll(ticket, new_id()))
    assert refused.reason is Reason.QUEUE_TICKET_NOT_FOUND


async def test_tickets_hold_through_a_rotation_of_the_keys(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event)
    new = Signer(["the new key, which is newest and so first", *KEYS])
    assert new.read_ticket(ticket.ticket_id) == ticket.ticket
    assert new.sign_ticket(ticket.ticket) != ticket.ticket_id


async def test_a_removed_room_voids_its_tickets_and_a_drawn_one_stays(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event)
    await queueing.queues.remove_room(event_id=event.event_id)
    assert (await refusal_of(queueing.poll(ticket))).reason is Reason.QUEUE_TICKET_NOT_FOUND
    refused = await refusal_of(queueing.queues.remove_room(event_id=event.event_id))
    assert refused.reason is Reason.WAITING_ROOM_NOT_FOUND
    # Again: numbers begin anew, and the old ticket is none of its.
    await queueing.queues.put_room(event_id=event.event_id, terms=TERMS)
    again = await queueing.join(event)
    assert again.ticket.number == ticket.ticket.number
    assert (await refusal_of(queueing.poll(ticket))).reason is Reason.QUEUE_TICKET_NOT_FOUND
    await queueing.open_sale(event)
    refused = await refusal_of(queueing.queues.remove_room(event_id=event.event_id))
    assert refused.reason is Reason.EVENT_STATE_INVALID


async def test_a_room_is_made_before_the_sale_and_changed_at_any_time(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    on_sale = await harness.an_event()
    refused = await refusal_of(queueing.queues.put_room(event_id=on_sale.event_id, terms=TERMS))
    assert refused.reason is Reason.EVENT_STATE_INVALID
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event)
    before = await queueing.queues.room(event_id=event.event_id, to_staff=False)
    changed = await queueing.queues.put_room(
        event_id=event.event_id, terms=replace(TERMS, per_minute=120)
    )
    assert (changed.terms.per_minute, changed.commitment) == (120, before.commitment)
    assert (changed.issued, changed.room_id) == (1, before.room_id)
    await queueing.open_sale(event)
    await queueing.queues.put_room(
        event_id=event.event_id, terms=replace(TERMS, session=timedelta(minutes=1))
    )
    await queueing.advance(timedelta(seconds=2))
    admitted = (await queueing.poll(ticket)).standing
    assert admitted.expire_time is not None
    assert admitted.expire_time - harness.clock.now <= timedelta(minutes=1)


async def test_the_room_moves_with_the_start_of_the_sale(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    ticket = await queueing.join(event)
    later = event.sale_start_time + timedelta(hours=2)
    await harness.commands.update(
        event_id=event.event_id, change=EventChange(sale_start_time=later), etag=None
    )
    harness.clock.now = event.sale_start_time
    await queueing.loop.turn()
    room = await queueing.queues.room(event_id=event.event_id, to_staff=False)
    assert room.state_at(harness.clock.now) is RoomState.SCHEDULED
    # The ticket keeps its part in the draw, which is now later.
    assert (await queueing.poll(ticket)).standing.state is State.WAITING
    harness.clock.now = later
    await queueing.loop.turn()
    harness.clock.advance(FRESH)
    assert (await queueing.poll(ticket)).standing.position == 1

    # After the draw the order stays; nobody is admitted until the sale starts again.
    last = later + timedelta(hours=1)
    await harness.commands.update(
        event_id=event.event_id, change=EventChange(sale_start_time=last), etag=None
    )
    await queueing.advance(timedelta(seconds=5))
    assert (await queueing.poll(ticket)).standing.state is State.WAITING
    harness.clock.now = last
    await queueing.advance(timedelta(seconds=2))
    assert (await queueing.poll(ticket)).standing.state is State.ADMITTED


async def test_ended_cancelled_and_sold_out_events_end_the_queue(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_event_with_room(harness, queueing, per_minute=1)
    harness.clock.now = event.sale_start_time - timedelta(minutes=10)
    tickets = [await queueing.join(event) for _ in range(3)]
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=61))
    standings = [(await queueing.poll(ticket)).standing for ticket in tickets]
    assert sorted(standing.state for standing in standings) == [
        State.ADMITTED,
        State.WAITING,
        State.WAITING,
    ]
    await harness.commands.set_status(event_id=event.event_id, to=EventStatus.CANCELLED)
    harness.clock.advance(FRESH)
    states = {(await queueing.poll(ticket)).standing.state for ticket in tickets}
    assert states == {State.ENDED}
    refused = await refusal_of(queueing.join(event))
    assert (refused.reason, refused.metadata["state"]) == (Reason.QUEUE_CLOSED, "ENDED")


async def test_nobody_is_admitted_while_the_event_is_sold_out_or_paused(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing)
    tickets = [await queueing.join(event) for _ in range(50)]
    await queueing.open_sale(event)
    await queueing.advance(timedelta(seconds=2))

    async def states() -> list[State]:
        harness.clock.advance(FRESH)
        return sorted([(await queueing.poll(ticket)).standing.state for ticket in tickets])

    admitted = (await states()).count(State.ADMITTED)
    await harness.commands.set_status(event_id=event.event_id, to=EventStatus.PAUSED)
    await queueing.advance(timedelta(seconds=5))
    assert (await states()).count(State.ADMITTED) == admitted
    await harness.commands.set_status(event_id=event.event_id, to=EventStatus.ON_SALE)
    await set_sold_out(harness, event, is_sold_out=True)
    await queueing.advance(timedelta(seconds=5))
    # Who is admitted may buy what comes back; for the others it has ended, for now.
    assert set(await states()) == {State.ADMITTED, State.ENDED}
    assert (await states()).count(State.ADMITTED) == admitted
    refused = await refusal_of(queueing.join(event))
    assert refused.reason is Reason.QUEUE_CLOSED
    await set_sold_out(harness, event, is_sold_out=False)
    await queueing.advance(timedelta(seconds=5))
    assert (await states()).count(State.ADMITTED) > admitted


async def set_sold_out(harness: BookingHarness, event: Event, *, is_sold_out: bool) -> None:
    """As the projection of the stock does (catalogue/stock_projection.py)."""

    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(events_table)
            .where(events_table.c.event_id == event.event_id)
            .values(is_sold_out=is_sold_out)
        )


async def test_proofs_of_work_are_checked_and_used_once(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing, proof_of_work_bits=10)
    now = harness.clock.now

    def a_proof(bits: int = 10, **changes: Any) -> str:
        given = {"event_id": event.event_id, "random": new_id().hex, "now": now, **changes}
        return proof_of_work.solve(bits=bits, **given)

    def too_easy() -> str:
        while True:
            proof = a_proof(bits=1)
            if isinstance(
                proof_of_work.check(proof, event_id=event.event_id, bits=10, now=now),
                proof_of_work.Fault,
            ):
                return proof

    good = a_proof()
    assert (await queueing.join(event, proof=good)).ticket.number == 0
    cases = [
        ("", "PROOF_MISSING"),
        ("1.2", "PROOF_MALFORMED"),
        (too_easy(), "PROOF_TOO_EASY"),
        (a_proof(now=now - timedelta(minutes=3)), "PROOF_OUTDATED"),
        (a_proof(now=now + timedelta(minutes=3)), "PROOF_OUTDATED"),
        (a_proof(event_id=new_id(), bits=16), "PROOF_TOO_EASY"),
        (good, "PROOF_REUSED"),
    ]
    for proof, cause in cases:
        refused = await refusal_of(queueing.join(event, proof=proof))
        assert refused.reason is Reason.QUEUE_CHALLENGE_FAILED
        assert (refused.metadata["cause"], refused.metadata["bits"]) == (cause, "10")
    # Used by two processes at once, by many calls: one ticket.
    other = QueueHarness(harness.database, harness.clock)
    racing = a_proof()
    outcomes = await asyncio.gather(
        *(process.join(event, proof=racing) for process in (queueing, other) * 5),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Position) for outcome in outcomes) == 1
    harness.clock.advance(FRESH)
    assert (await queueing.queues.room(event_id=event.event_id, to_staff=True)).issued == 2
    await queueing.store_reports()
    await other.store_reports()
    counts = await queueing.queues.refusals_of(event_id=event.event_id)
    assert counts["PROOF_REUSED"] == 10
    assert counts["PROOF_OUTDATED"] == 2


class Captchas:
    """ports.Captchas: the provider's verdict by token."""

    async def is_solved(self, *, token: str, address: str) -> bool:
        if token == "away":
            raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, "the provider is away")
        return (token, address) == ("solved", "192.0.2.7")


async def test_a_captcha_providers_verdict_decides(harness: BookingHarness) -> None:
    queueing = QueueHarness.of(harness, captchas=Captchas())
    event = await an_open_room(harness, queueing)
    await queueing.join(event, captcha="solved")
    for token, cause in (("", "CAPTCHA_MISSING"), ("guessed", "CAPTCHA_FAILED")):
        refused = await refusal_of(queueing.join(event, captcha=token))
        assert refused.metadata["cause"] == cause
    away = await refusal_of(queueing.join(event, captcha="away"))
    assert away.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_draft_has_no_room_for_customers(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await harness.an_event(
        sale_start_time=harness.clock.now + timedelta(hours=1), is_draft=True
    )
    await queueing.queues.put_room(event_id=event.event_id, terms=TERMS)
    await queueing.queues.room(event_id=event.event_id, to_staff=True)
    refused = await refusal_of(queueing.queues.room(event_id=event.event_id, to_staff=False))
    assert refused.reason is Reason.WAITING_ROOM_NOT_FOUND


async def test_absent_visitors_do_not_slow_down_the_queue(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    """60 a minute are those who come: for each admission that nobody claims another follows."""
    event = await an_open_room(harness, queueing)
    tickets = [await queueing.join(event) for _ in range(400)]
    await queueing.open_sale(event)
    present = {ticket.ticket_id for ticket in tickets[::2]}
    claimed: dict[str, int] = {}
    for second in range(180):
        await queueing.advance(timedelta(seconds=1))
        for ticket in tickets if second % 10 == 9 else ():
            if ticket.ticket_id in present and ticket.ticket_id not in claimed:
                polled = await queueing.poll(ticket, new_id())
                if polled.token is not None:
                    claimed[ticket.ticket_id] = second
    in_third_minute = sum(second >= 120 for second in claimed.values())
    # Half of the visitors are absent: without the next in their place there would be 30.
    assert 40 <= in_third_minute <= 60
    room = await queueing.queues.room(event_id=event.event_id, to_staff=True)
    assert room.admitted <= 400


async def test_auto_fills_up_to_its_target_and_gives_finished_admissions_to_the_next(
    harness: BookingHarness, queueing: QueueHarness
) -> None:
    event = await an_open_room(harness, queueing, per_minute=None)
    customers = {
        ticket.ticket_id: (ticket, customer)
        for ticket, customer in [
            (await queueing.join(event, customer), customer)
            for customer in [new_id() for _ in range(80)]
        ]
    }
    await queueing.open_sale(event)

    async def admitted() -> dict[Any, str]:
        await queueing.advance(timedelta(seconds=1))
        harness.clock.advance(FRESH)
        polled = [await queueing.poll(*pair) for pair in customers.values()]
        return {
            customers[position.ticket_id][1]: position.token
            for position in polled
            if position.token is not None
        }

    first = await admitted()
    assert len(first) == 50
    await queueing.advance(timedelta(seconds=4))
    assert len(await admitted()) == 50
    buyers = list(first.items())[:10]
    for customer, token in buyers:
        await harness.place(event, customer_id=customer, admission_token=token)
    await queueing.store_reports()
    # 10 have finished; the quick bookings raised the target by 10, too.
    await queueing.advance(timedelta(seconds=6))
    assert len(await admitted()) == 70
    # The others lapse; only then the rest comes.
    harness.clock.advance(SESSION)
    await queueing.advance(timedelta(seconds=2))
    room = await queueing.queues.room(event_id=event.event_id, to_staff=True)
    assert room.admitted == 80


async def test_watching_tells_each_change_and_ends_with_the_turn(
    harness: BookingHarness, queueing: QueueHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await an_open_room(harness, queueing, session=timedelta(minutes=1))
    customer = new_id()
    ticket = await queueing.join(event, customer)

    async def pause(seconds: float) -> None:
        await queueing.advance(timedelta(seconds=seconds))

    monkeypatch.setattr(queueing.queues, "_pause", pause)
    states: list[tuple[State, bool]] = []
    async for position in queueing.queues.watch(ticket_id=ticket.ticket_id, user_id=customer):
        seen = (position.standing.state, position.token is not None)
        if not states or states[-1] != seen:
            states.append(seen)
    assert states == [(State.WAITING, False), (State.ADMITTED, True), (State.MISSED, False)]
