"""WaitingListService: message → one domain call → message."""

from typing import Any
from uuid import UUID

from booking_svc.bookings import proto as booking_proto
from booking_svc.bookings.bookings import Booking
from booking_svc.queueing import (
    waiting_list,
    waiting_list_claim,
    waiting_list_entries,
    waiting_list_proto,
)
from booking_svc.queueing.waiting_list import Dependencies
from boxoffice.bookings.v1 import booking_pb2
from boxoffice.queueing.v1 import (
    waiting_list_pb2,
    waiting_list_service_pb2,
    waiting_list_service_pb2_grpc,
)
from mesh import paging
from mesh.rpc.call import caller
from mesh.tasks import shielded

# Calls that hold or release places continue for this time after the client has disconnected.
_JOIN_SECONDS = 9.5
_CHANGE_SECONDS = 4.5


class WaitingListServicer(waiting_list_service_pb2_grpc.WaitingListServiceServicer):
    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps

    async def JoinWaitingList(
        self, request: waiting_list_service_pb2.JoinWaitingListRequest, context: Any
    ) -> waiting_list_pb2.WaitingListEntry:
        entry = await shielded(
            waiting_list.join(
                self._deps,
                customer_id=caller().user(),
                event_id=UUID(request.event_id),
                items=waiting_list_proto.items_from(request.items),
                is_staff=caller().is_staff,
            ),
            seconds=_JOIN_SECONDS,
        )
        return await self._get(entry.entry_id)

    async def LeaveWaitingList(
        self, request: waiting_list_service_pb2.LeaveWaitingListRequest, context: Any
    ) -> waiting_list_service_pb2.LeaveWaitingListResponse:
        await shielded(
            waiting_list.leave(
                self._deps,
                entry_id=UUID(request.entry_id),
                owner=caller().owner_scope,
                is_staff=caller().is_staff,
            ),
            seconds=_CHANGE_SECONDS,
        )
        return waiting_list_service_pb2.LeaveWaitingListResponse()

    async def GetWaitingListEntry(
        self, request: waiting_list_service_pb2.GetWaitingListEntryRequest, context: Any
    ) -> waiting_list_pb2.WaitingListEntry:
        return await self._get(UUID(request.entry_id))

    async def ListWaitingList(
        self, request: waiting_list_service_pb2.ListWaitingListRequest, context: Any
    ) -> waiting_list_service_pb2.ListWaitingListResponse:
        async with self._deps.database.reading() as connection:
            page = await waiting_list_entries.list_page(
                connection,
                event_id=UUID(request.event_id),
                states=waiting_list_proto.states_from(request.state),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
            positions = await waiting_list_entries.positions(connection, page.entries)
        return waiting_list_service_pb2.ListWaitingListResponse(
            entries=[waiting_list_proto.entry(entry, positions) for entry in page.entries],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def ClaimWaitingListOffer(
        self, request: waiting_list_service_pb2.ClaimWaitingListOfferRequest, context: Any
    ) -> booking_pb2.Booking:
        booking = await shielded(
            waiting_list_claim.claim(
                self._deps,
                entry_id=UUID(request.entry_id),
                customer_id=caller().user(),
                encode=_encode,
            ),
            seconds=_CHANGE_SECONDS,
        )
        return booking_proto.booking(booking)

    async def _get(self, entry_id: UUID) -> waiting_list_pb2.WaitingListEntry:
        async with self._deps.database.reading() as connection:
            entry = await waiting_list_entries.get(
                connection, entry_id=entry_id, owner=caller().owner_scope
            )
            positions = await waiting_list_entries.positions(connection, [entry])
        return waiting_list_proto.entry(entry, positions)


def _encode(booking: Booking) -> bytes:
    return booking_proto.booking(booking).SerializeToString()
