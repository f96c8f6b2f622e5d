"""Conversions between the values of waiting rooms and the contract's messages."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from booking_svc.queueing import draw
from booking_svc.queueing.queues import Position
from booking_svc.queueing.waiting_rooms import Room, RoomTerms
from boxoffice.queueing.v1 import waiting_room_pb2
from mesh.conversions import given, time_to_proto

_SECOND = timedelta(seconds=1)


def to_terms(message: waiting_room_pb2.WaitingRoom) -> RoomTerms:
    return RoomTerms(
        opens_before_sale=timedelta(seconds=message.opens_before_sale_seconds),
        per_minute=given(message.admission, "per_minute"),
        max_per_minute=given(message.admission, "max_per_minute"),
        session=timedelta(seconds=message.session_seconds),
        proof_of_work_bits=message.proof_of_work_bits,
    )


def room(
    value: Room, now: datetime, refusals: Mapping[str, int] | None = None
) -> waiting_room_pb2.WaitingRoom:
    terms = value.terms
    return waiting_room_pb2.WaitingRoom(
        event_id=str(value.event_id),
        opens_before_sale_seconds=terms.opens_before_sale // _SECOND,
        admission=waiting_room_pb2.Admission(
            per_minute=terms.per_minute,
            auto=terms.per_minute is None,
            max_per_minute=terms.max_per_minute,
        ),
        session_seconds=terms.session // _SECOND,
        proof_of_work_bits=terms.proof_of_work_bits,
        state=waiting_room_pb2.WaitingRoom.State.Value(value.state_at(now)),
        open_time=time_to_proto(value.open_time),
        sale_start_time=time_to_proto(value.sale_start_time),
        joined=value.issued,
        admitted=value.admitted,
        refusals=[
            waiting_room_pb2.QueueRefusals(cause=cause, count=count)
            for cause, count in (refusals or {}).items()
        ],
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
    )


def ticket(value: Position) -> waiting_room_pb2.QueueTicket:
    standing = value.standing
    wait = standing.estimated_wait
    return waiting_room_pb2.QueueTicket(
        ticket_id=value.ticket_id,
        event_id=str(value.ticket.event_id),
        state=waiting_room_pb2.QueueTicket.State.Value(standing.state),
        number=value.ticket.number,
        position=standing.position,
        ahead=standing.ahead,
        estimated_wait_seconds=None if wait is None else min(wait // _SECOND, 2**31 - 1),
        admission_token=value.token,
        admission_expire_time=time_to_proto(standing.expire_time),
        poll_after_seconds=standing.poll_after_seconds,
    )


def draw_of(value: Room) -> waiting_room_pb2.Draw:
    return waiting_room_pb2.Draw(
        event_id=str(value.event_id),
        algorithm=draw.ALGORITHM,
        commitment=value.commitment.hex(),
        secret=None if value.secret is None else value.secret.hex(),
        participants=value.participants or 0,
        draw_time=time_to_proto(value.draw_time),
    )
