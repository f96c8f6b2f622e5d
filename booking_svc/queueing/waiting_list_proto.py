"""Conversions between entries of waiting lists and the contract's messages."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from booking_svc.queueing.waiting_list_entries import WAITING, Entry, Item, State
from boxoffice.queueing.v1 import waiting_list_pb2
from mesh.conversions import id_to_proto, time_to_proto

_Message = waiting_list_pb2.WaitingListEntry


def entry(value: Entry, positions: Mapping[UUID, int] | None = None) -> _Message:
    """The message of an entry, with its position if `positions` has it."""
    state = State.WAITING if value.state is State.RESERVING else value.state
    is_offered = value.state is State.OFFERED
    return _Message(
        entry_id=str(value.entry_id),
        event_id=str(value.event_id),
        customer_id=str(value.customer_id),
        items=[
            waiting_list_pb2.WaitingListItem(offer_id=str(item.offer_id), quantity=item.quantity)
            for item in value.items
        ],
        state=_Message.State.Value(state),
        position=(positions or {}).get(value.entry_id),
        offer_expire_time=time_to_proto(value.offer_expire_time) if is_offered else None,
        offered_seat_ids=[
            str(line.seat_id) for line in value.lines if is_offered and line.seat_id is not None
        ],
        booking_id=id_to_proto(value.booking_id),
        end_reason=(
            None if value.end_reason is None else _Message.EndReason.Value(value.end_reason)
        ),
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
    )


def items_from(messages: Sequence[waiting_list_pb2.WaitingListItem]) -> tuple[Item, ...]:
    return tuple(Item(UUID(message.offer_id), message.quantity) for message in messages)


def states_from(state: int) -> tuple[State, ...]:
    """The states that clients see as one; none for an unset filter."""
    if not state:
        return ()
    if state == _Message.WAITING:
        return WAITING
    return (State(_Message.State.Name(_Message.State.ValueType(state))),)
