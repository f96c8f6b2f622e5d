"""EventService: proto → one domain call → proto."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any
from uuid import UUID

from booking_svc.catalogue import event_creation, event_listing, proto
from booking_svc.catalogue.availability import AvailabilityCache, EventStock
from booking_svc.catalogue.availability_stream import AvailabilityStreams
from booking_svc.catalogue.event_cache import EventCache
from booking_svc.catalogue.event_cancellations import Progress
from booking_svc.catalogue.event_commands import EventCommands
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.personal import PersonalReads
from booking_svc.catalogue.seat_states import SeatOrders
from booking_svc.clients.ports import Availability
from boxoffice.catalogue.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from mesh import coalescing, paging
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import key_of_call
from mesh.errors import DomainError, FieldViolation
from mesh.rpc import validation
from mesh.rpc.call import caller
from mesh.tasks import shielded

# A change of stock continues up to this long after the client cancelled the call.
_WRITE_SECONDS = 9.5

# As old as the availability may be.
_SEAT_ORDER_SECONDS = 1.0

_List = tuple[bytes, bool]
"""A serialised ListEventsRequest, and whether drafts are shown."""


class EventServicer(event_service_pb2_grpc.EventServiceServicer):
    """`cancellation_progress` is passed in: the catalogue imports nothing of the bookings package."""

    def __init__(
        self,
        *,
        database: Database,
        commands: EventCommands,
        availability: AvailabilityCache,
        streams: AvailabilityStreams,
        orders: SeatOrders,
        cache: EventCache,
        personal_reads: PersonalReads,
        cancellation_progress: Callable[[UUID], Awaitable[Progress]],
        clock: Clock,
    ) -> None:
        self._database = database
        self._cancellation_progress = cancellation_progress
        self._cache = cache
        self._personal_reads = personal_reads
        self._commands = commands
        self._availability = availability
        self._streams = streams
        self._orders = orders
        self._clock = clock
        self._totals = event_listing.Totals()
        self._lists = coalescing.reads("event lists", self._read_lists)

    async def CreateEvent(
        self, request: event_service_pb2.CreateEventRequest, context: Any
    ) -> event_pb2.Event:
        answer = await shielded(
            self._commands.create(
                new=proto.to_new_event(request.event),
                key=key_of_call("CreateEvent", request),
                encode=self._encode,
            ),
            seconds=_WRITE_SECONDS,
        )
        return event_pb2.Event.FromString(answer)

    async def ListEvents(self, request: event_service_pb2.ListEventsRequest, context: Any) -> Any:
        answer: Any
        if request.query:
            answer = await self._list(request, shows_drafts=caller().is_staff)
        else:
            answer = await self._lists.submit((request.SerializeToString(), caller().is_staff))
        customer_id = caller().customer_id
        if customer_id is None:
            return answer
        if not request.query:
            # A copy of the shared answer.
            answer = event_service_pb2.ListEventsResponse.FromString(answer)
        await self._add_personal(customer_id, answer.events)
        return answer

    async def _read_lists(self, requests: Sequence[_List]) -> Sequence[bytes | Exception]:
        """The serialised lists; equal requests share one reading."""

        async def read(sent: bytes, shows_drafts: bool) -> bytes | Exception:
            request = event_service_pb2.ListEventsRequest.FromString(sent)
            try:
                answer = await self._list(request, shows_drafts=shows_drafts)
            except DomainError as refusal:
                return refusal
            return answer.SerializeToString()

        distinct = list(dict.fromkeys(requests))
        answers = await asyncio.gather(*(read(*key) for key in distinct))
        answer_of = dict(zip(distinct, answers, strict=True))
        return [answer_of[key] for key in requests]

    async def _list(
        self, request: event_service_pb2.ListEventsRequest, *, shows_drafts: bool
    ) -> event_service_pb2.ListEventsResponse:
        now = self._clock()
        async with self._database.reading() as connection:
            page = await event_listing.list_page(
                connection,
                filters=proto.to_filters(request),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
                totals=self._totals,
                now=now,
                shows_drafts=shows_drafts,
            )
        return event_service_pb2.ListEventsResponse(
            events=[proto.event(listed.event, listed.availability, now) for listed in page.events],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def UpdateEvent(
        self, request: event_service_pb2.UpdateEventRequest, context: Any
    ) -> event_pb2.Event:
        event, stock = await shielded(
            self._commands.update(
                event_id=UUID(request.event_id),
                change=proto.to_change(request.event),
                etag=_if_match(context)
                or (request.event.etag if request.event.HasField("etag") else None),
            ),
            seconds=_WRITE_SECONDS,
        )
        await self._forget(event.event_id)
        return proto.event(event, stock, self._clock())

    async def DeleteEvent(
        self, request: event_service_pb2.DeleteEventRequest, context: Any
    ) -> event_service_pb2.DeleteEventResponse:
        event_id = UUID(request.event_id)
        await self._commands.delete(event_id=event_id)
        await self._forget(event_id)
        return event_service_pb2.DeleteEventResponse()

    async def GetEventCancellation(
        self, request: event_service_pb2.GetEventCancellationRequest, context: Any
    ) -> event_service_pb2.EventCancellation:
        progress = await self._cancellation_progress(UUID(request.event_id))
        return proto.cancellation_progress(progress)

    async def SetEventStatus(
        self, request: event_service_pb2.SetEventStatusRequest, context: Any
    ) -> event_pb2.Event:
        event, stock = await self._commands.set_status(
            event_id=UUID(request.event_id),
            to=proto.to_status(request.status),
            reason=request.reason,
        )
        await self._forget(event.event_id)
        return proto.event(event, stock, self._clock())

    # These return bytes: an answer for many clients is serialised once (mesh/rpc/interceptor.py).

    async def GetEvent(self, request: event_service_pb2.GetEventRequest, context: Any) -> Any:
        stock = await self._visible_stock(UUID(request.event_id), with_seats=False)
        now = self._clock()
        answer = stock.serialised(
            "event",
            (stock.event, stock.status_at(now)),
            lambda: proto.event(stock.event, stock.availability(), now).SerializeToString(),
        )
        customer_id = caller().customer_id
        if customer_id is None:
            return answer
        event = event_pb2.Event.FromString(answer)
        await self._add_personal(customer_id, [event])
        return event

    async def GetAvailability(
        self, request: event_service_pb2.GetAvailabilityRequest, context: Any
    ) -> Any:
        stock = await self._visible_stock(UUID(request.event_id), with_seats=True)
        if request.seat_format != event_service_pb2.Availability.STRING:
            return stock.serialised(
                "availability", stock.event.revision, lambda: proto.availability(stock, None)
            )
        order = await self._orders.of(
            stock.event.auditorium_id, max_age_seconds=_SEAT_ORDER_SECONDS
        )
        return stock.serialised(
            "availability as a string",
            (stock.event.revision, order),
            lambda: proto.availability(stock, order),
        )

    async def WatchAvailability(
        self, request: event_service_pb2.WatchAvailabilityRequest, context: Any
    ) -> AsyncIterator[Any]:
        await self._visible_stock(UUID(request.event_id), with_seats=True)
        after = request.after_version if request.HasField("after_version") else None
        updates = self._streams.stream(
            event_id=UUID(request.event_id),
            after_version=after,
            as_string=request.seat_format == event_service_pb2.Availability.STRING,
        )
        async with aclosing(updates):
            async for update in updates:
                yield update

    async def _add_personal(self, customer_id: UUID, events: Sequence[event_pb2.Event]) -> None:
        """Adds what events are to a customer to an answer for this customer alone."""
        read = await self._personal_reads.read(customer_id, proto.limits(events))
        proto.add_personal(events, read)

    async def _forget(self, event_id: UUID) -> None:
        """Makes later reads return a committed change."""
        await self._cache.forget(event_id)
        # After Redis, from which it is read again.
        self._availability.invalidate(event_id)

    async def _visible_stock(self, event_id: UUID, *, with_seats: bool) -> EventStock:
        """The stock of an event. Raises EVENT_NOT_FOUND, also for a draft unless for staff."""
        stock = await self._availability.stock(event_id=event_id, with_seats=with_seats)
        if not stock.event.is_draft or caller().is_staff:
            return stock
        # The event that is cached with the stock may have been published by another process.
        event = await self._cache.get(event_id)
        event.refuse_unless_visible(to_staff=False)
        self._availability.invalidate(event_id)
        return await self._availability.stock(event_id=event_id, with_seats=with_seats)

    def _encode(self, event: Event, stock: Availability) -> bytes:
        return proto.event(event, stock, self._clock()).SerializeToString()


def _if_match(context: Any) -> str | None:
    """The header If-Match, which the gateway forwards."""
    for name, value in context.invocation_metadata() or ():
        if name == "if-match":
            return str(value)
    return None


def _of_rules(request: event_service_pb2.CreateEventRequest) -> list[FieldViolation]:
    return event_creation.violations(proto.to_new_event(request.event))


# So that one answer has all faults of a new event; event_creation.py refuses it alone.
validation.name_also(event_service_pb2.CreateEventRequest, _of_rules, of_valid_fields=True)
