"""VenueService and EventService: proto → one domain call → proto."""

from typing import Any
from uuid import UUID

from booking_svc import events, messages, venues
from booking_svc.ports import Stock
from boxoffice.catalogue.v1 import (
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    venue_pb2,
    venue_service_pb2,
    venue_service_pb2_grpc,
)
from mesh.clock import Clock
from mesh.database import Database


class VenueServicer(venue_service_pb2_grpc.VenueServiceServicer):
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def CreateVenue(
        self, request: venue_service_pb2.CreateVenueRequest, context: Any
    ) -> venue_pb2.Venue:
        async with self._database.transaction() as connection:
            created = await venues.create_venue(
                connection,
                name=request.venue.name,
                time_zone=request.venue.time_zone,
                address=request.venue.address,
                now=self._clock(),
            )
        return messages.venue(created)

    async def GetVenue(
        self, request: venue_service_pb2.GetVenueRequest, context: Any
    ) -> venue_pb2.Venue:
        async with self._database.reading() as connection:
            return messages.venue(
                await venues.get_venue(connection, venue_id=UUID(request.venue_id))
            )

    async def CreateAuditorium(
        self, request: venue_service_pb2.CreateAuditoriumRequest, context: Any
    ) -> venue_pb2.Auditorium:
        async with self._database.transaction() as connection:
            created = await venues.create_auditorium(
                connection,
                venue_id=UUID(request.venue_id),
                name=request.name,
                rows=tuple(messages.to_row(row) for row in request.rows),
                now=self._clock(),
            )
        return messages.auditorium(created)

    async def GetAuditorium(
        self, request: venue_service_pb2.GetAuditoriumRequest, context: Any
    ) -> venue_pb2.Auditorium:
        async with self._database.reading() as connection:
            return messages.auditorium(
                await venues.get_auditorium(connection, auditorium_id=UUID(request.auditorium_id))
            )


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    def __init__(self, database: Database, stock: Stock, clock: Clock) -> None:
        self._database = database
        self._stock = stock
        self._clock = clock

    async def CreateEvent(
        self, request: event_service_pb2.CreateEventRequest, context: Any
    ) -> event_pb2.Event:
        now = self._clock()
        async with self._database.transaction() as connection:
            plan = await events.plan(connection, new=messages.to_new_event(request.event), now=now)
        # Stock first: dying in between leaves stock that no event sells, and not the reverse.
        await self._stock.define(
            event_id=plan.event.event_id, pools=plan.pools, offers=plan.offers, seats=plan.seats
        )
        async with self._database.transaction() as connection:
            await events.insert(connection, event=plan.event)
        left = await self._stock.left(event_id=plan.event.event_id, with_seats=False)
        return messages.event(plan.event, left, now)

    async def GetEvent(
        self, request: event_service_pb2.GetEventRequest, context: Any
    ) -> event_pb2.Event:
        event_id = UUID(request.event_id)
        async with self._database.reading() as connection:
            found = await events.get(connection, event_id=event_id)
        left = await self._stock.left(event_id=event_id, with_seats=False)
        return messages.event(found, left, self._clock())

    async def GetAvailability(
        self, request: event_service_pb2.GetAvailabilityRequest, context: Any
    ) -> event_service_pb2.Availability:
        event_id = UUID(request.event_id)
        async with self._database.reading() as connection:
            await events.get(connection, event_id=event_id)
        left = await self._stock.left(event_id=event_id, with_seats=True)
        return messages.availability(event_id, left)
