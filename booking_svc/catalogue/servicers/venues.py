"""VenueService: proto → one domain call → proto."""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import proto, time_zones, venues
from boxoffice.catalogue.v1 import venue_pb2, venue_service_pb2, venue_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, key_of_call
from mesh.errors import FieldViolation
from mesh.rpc import validation


class VenueServicer(venue_service_pb2_grpc.VenueServiceServicer):
    def __init__(self, database: Database, writes: IdempotentWrites, clock: Clock) -> None:
        self._database = database
        self._writes = writes
        self._clock = clock

    async def CreateVenue(
        self, request: venue_service_pb2.CreateVenueRequest, context: Any
    ) -> venue_pb2.Venue:
        now = self._clock()

        async def create(connection: AsyncConnection) -> tuple[UUID, bytes]:
            created = await venues.create_venue(
                connection,
                name=request.venue.name,
                time_zone=request.venue.time_zone,
                address=request.venue.address,
                now=now,
            )
            return created.venue_id, proto.venue(created).SerializeToString()

        answer = await self._writes.run_once(key_of_call("CreateVenue", request), create)
        return venue_pb2.Venue.FromString(answer)

    async def GetVenue(
        self, request: venue_service_pb2.GetVenueRequest, context: Any
    ) -> venue_pb2.Venue:
        async with self._database.reading() as connection:
            return proto.venue(await venues.get_venue(connection, venue_id=UUID(request.venue_id)))

    async def ListVenues(
        self, request: venue_service_pb2.ListVenuesRequest, context: Any
    ) -> venue_service_pb2.ListVenuesResponse:
        async with self._database.reading() as connection:
            page = await venues.list_venues(
                connection,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return venue_service_pb2.ListVenuesResponse(
            venues=[proto.venue(venue) for venue in page.resources],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def CreateAuditorium(
        self, request: venue_service_pb2.CreateAuditoriumRequest, context: Any
    ) -> venue_pb2.Auditorium:
        now = self._clock()

        async def create(connection: AsyncConnection) -> tuple[UUID, bytes]:
            created = await venues.create_auditorium(
                connection,
                venue_id=UUID(request.venue_id),
                name=request.name,
                rows=tuple(proto.to_row(row) for row in request.rows),
                now=now,
            )
            return created.auditorium_id, proto.auditorium(created).SerializeToString()

        answer = await self._writes.run_once(key_of_call("CreateAuditorium", request), create)
        return venue_pb2.Auditorium.FromString(answer)

    async def GetAuditorium(
        self, request: venue_service_pb2.GetAuditoriumRequest, context: Any
    ) -> venue_pb2.Auditorium:
        async with self._database.reading() as connection:
            return proto.auditorium(
                await venues.get_auditorium(connection, auditorium_id=UUID(request.auditorium_id))
            )

    async def UpdateVenue(
        self, request: venue_service_pb2.UpdateVenueRequest, context: Any
    ) -> venue_pb2.Venue:
        async with self._database.transaction() as connection:
            return proto.venue(
                await venues.update_venue(
                    connection,
                    venue_id=UUID(request.venue_id),
                    values={field.name: value for field, value in request.venue.ListFields()},
                    now=self._clock(),
                )
            )

    async def DeleteVenue(
        self, request: venue_service_pb2.DeleteVenueRequest, context: Any
    ) -> venue_service_pb2.DeleteVenueResponse:
        async with self._database.transaction() as connection:
            await venues.delete_venue(
                connection, venue_id=UUID(request.venue_id), now=self._clock()
            )
        return venue_service_pb2.DeleteVenueResponse()

    async def ListAuditoriums(
        self, request: venue_service_pb2.ListAuditoriumsRequest, context: Any
    ) -> venue_service_pb2.ListAuditoriumsResponse:
        async with self._database.reading() as connection:
            page = await venues.list_auditoriums(
                connection,
                venue_id=UUID(request.venue_id),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return venue_service_pb2.ListAuditoriumsResponse(
            auditoriums=[proto.auditorium(auditorium) for auditorium in page.resources],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def UpdateAuditorium(
        self, request: venue_service_pb2.UpdateAuditoriumRequest, context: Any
    ) -> venue_pb2.Auditorium:
        async with self._database.transaction() as connection:
            return proto.auditorium(
                await venues.rename_auditorium(
                    connection,
                    auditorium_id=UUID(request.auditorium_id),
                    name=request.name,
                    now=self._clock(),
                )
            )

    async def DeleteAuditorium(
        self, request: venue_service_pb2.DeleteAuditoriumRequest, context: Any
    ) -> venue_service_pb2.DeleteAuditoriumResponse:
        async with self._database.transaction() as connection:
            await venues.delete_auditorium(
                connection, auditorium_id=UUID(request.auditorium_id), now=self._clock()
            )
        return venue_service_pb2.DeleteAuditoriumResponse()

    async def AddSeats(
        self, request: venue_service_pb2.AddSeatsRequest, context: Any
    ) -> venue_service_pb2.AddSeatsResponse:
        auditorium_id = UUID(request.auditorium_id)
        rows = tuple(map(proto.to_row, request.rows))

        async def add(connection: AsyncConnection) -> tuple[UUID, bytes]:
            seat_count = await venues.add_seats(
                connection, auditorium_id=auditorium_id, rows=rows, now=self._clock()
            )
            added = venue_service_pb2.AddSeatsResponse(
                auditorium_id=request.auditorium_id,
                rows=map(proto.row, rows),
                seat_count=seat_count,
            )
            return auditorium_id, added.SerializeToString()

        answer = await self._writes.run_once(key_of_call("AddSeats", request), add)
        return venue_service_pb2.AddSeatsResponse.FromString(answer)

    async def UpdateSeats(
        self, request: venue_service_pb2.UpdateSeatsRequest, context: Any
    ) -> venue_service_pb2.UpdateSeatsResponse:
        async with self._database.transaction() as connection:
            changed = await venues.update_seats(
                connection,
                auditorium_id=UUID(request.auditorium_id),
                changes=[proto.to_seat_change(change) for change in request.seats],
                now=self._clock(),
            )
        return venue_service_pb2.UpdateSeatsResponse(seats=map(proto.seat, changed))


def _of_venue(request: venue_service_pb2.CreateVenueRequest) -> list[FieldViolation]:
    return time_zones.violations("venue.time_zone", request.venue.time_zone)


def _of_rows(request: venue_service_pb2.CreateAuditoriumRequest) -> list[FieldViolation]:
    return venues.duplicate_violations(tuple(proto.to_row(row) for row in request.rows))


# So that one answer has all faults; venues.py refuses these alone.
validation.name_also(venue_service_pb2.CreateVenueRequest, _of_venue, of_valid_fields=True)
validation.name_also(venue_service_pb2.CreateAuditoriumRequest, _of_rows, of_valid_fields=True)
