"""QueueService: message → one domain call → message."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from booking_svc.queueing import proto
from booking_svc.queueing.queues import Queues
from boxoffice.queueing.v1 import queue_service_pb2, queue_service_pb2_grpc, waiting_room_pb2
from mesh.clock import Clock
from mesh.rpc.call import caller


class QueueServicer(queue_service_pb2_grpc.QueueServiceServicer):
    def __init__(self, queues: Queues, clock: Clock) -> None:
        self._queues = queues
        self._clock = clock

    async def SetWaitingRoom(
        self, request: queue_service_pb2.SetWaitingRoomRequest, context: Any
    ) -> waiting_room_pb2.WaitingRoom:
        room = await self._queues.put_room(
            event_id=UUID(request.event_id), terms=proto.to_terms(request.waiting_room)
        )
        return proto.room(room, self._clock())

    async def GetWaitingRoom(
        self, request: queue_service_pb2.GetWaitingRoomRequest, context: Any
    ) -> waiting_room_pb2.WaitingRoom:
        event_id, is_staff = UUID(request.event_id), caller().is_staff
        room = await self._queues.room(event_id=event_id, to_staff=is_staff)
        refusals = await self._queues.refusals_of(event_id=event_id) if is_staff else None
        return proto.room(room, self._clock(), refusals)

    async def DeleteWaitingRoom(
        self, request: queue_service_pb2.DeleteWaitingRoomRequest, context: Any
    ) -> queue_service_pb2.DeleteWaitingRoomResponse:
        await self._queues.remove_room(event_id=UUID(request.event_id))
        return queue_service_pb2.DeleteWaitingRoomResponse()

    async def JoinQueue(
        self, request: queue_service_pb2.JoinQueueRequest, context: Any
    ) -> waiting_room_pb2.QueueTicket:
        user = caller()
        position = await self._queues.join(
            event_id=UUID(request.event_id),
            user_id=user.user_id,
            proof=request.proof_of_work,
            captcha_token=request.captcha_token,
            address=user.address,
            to_staff=user.is_staff,
        )
        return proto.ticket(position)

    async def GetQueuePosition(
        self, request: queue_service_pb2.GetQueuePositionRequest, context: Any
    ) -> waiting_room_pb2.QueueTicket:
        position = await self._queues.position(
            ticket_id=request.ticket_id, user_id=caller().user_id
        )
        return proto.ticket(position)

    async def WatchQueue(
        self, request: queue_service_pb2.WatchQueueRequest, context: Any
    ) -> AsyncIterator[waiting_room_pb2.QueueTicket]:
        positions = self._queues.watch(ticket_id=request.ticket_id, user_id=caller().user_id)
        async with aclosing(positions):
            async for position in positions:
                yield proto.ticket(position)

    async def GetDraw(
        self, request: queue_service_pb2.GetDrawRequest, context: Any
    ) -> waiting_room_pb2.Draw:
        room = await self._queues.room(event_id=UUID(request.event_id), to_staff=False)
        return proto.draw_of(room)
