"""BookingService: message → one domain call → message."""

from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from booking_svc.bookings import (
    bookings,
    cancellation,
    checkout,
    modification,
    placement,
    proto,
    return_addresses,
)
from booking_svc.bookings.bookings import Actor, Booking, By, Filter, Status
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification import BookingPatch
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import NOT_SHOWN, RequestedItem, ShownPrice
from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2, booking_service_pb2_grpc
from mesh import coalescing, paging
from mesh.conversions import money_from_proto, time_from_proto
from mesh.db.idempotent import key_for, key_of_call
from mesh.errors import DomainError, Reason
from mesh.rpc.call import caller, idempotency_key
from mesh.tasks import shielded

# Calls that change stock or money continue for this time after the client has disconnected.
_PLACE_SECONDS = 9.5
_CHECKOUT_SECONDS = 9.5
_CANCEL_SECONDS = 4.5
_CHANGE_SECONDS = 9.5


class BookingServicer(booking_service_pb2_grpc.BookingServiceServicer):
    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._readings = coalescing.reads("bookings", self._read_all)

    async def PlaceBooking(
        self, request: booking_service_pb2.PlaceBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        customer_id = caller().user()
        return await _shielded(
            placement.place(
                self._deps,
                key=key_for("PlaceBooking", customer_id, idempotency_key() or "", request),
                customer_id=customer_id,
                event_id=UUID(request.event_id),
                items=[_requested(item) for item in request.items],
                checkout=self._checkout(request.checkout, "checkout.")
                if request.HasField("checkout")
                else None,
                encode=_encode,
                is_mail_wanted=request.mail_hold,
                shown=_shown(request),
                is_staff=caller().is_staff,
                admission_token=request.admission_token,
            ),
            seconds=_PLACE_SECONDS,
        )

    async def GetBooking(
        self, request: booking_service_pb2.GetBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        booking = await self._readings.submit(UUID(request.booking_id))
        if caller().owner_scope not in (None, booking.customer_id):
            raise bookings.not_found(booking.booking_id)
        return proto.booking(booking)

    async def _read_all(self, booking_ids: Sequence[UUID]) -> Sequence[Booking | Exception]:
        async with self._deps.database.reading() as connection:
            existing = await bookings.get_all(connection, set(booking_ids))
        return [
            existing.get(booking_id) or bookings.not_found(booking_id) for booking_id in booking_ids
        ]

    async def ListBookings(
        self, request: booking_service_pb2.ListBookingsRequest, context: Any
    ) -> booking_service_pb2.ListBookingsResponse:
        matches = _filter(request, _customer_id(request))
        async with self._deps.database.reading() as connection:
            page = await bookings.list_page(
                connection,
                matches=matches,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return booking_service_pb2.ListBookingsResponse(
            bookings=[proto.booking(booking) for booking in page.bookings],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def ListEventBookings(
        self, request: booking_service_pb2.ListEventBookingsRequest, context: Any
    ) -> booking_service_pb2.ListEventBookingsResponse:
        matches = _filter(request, _id(request.customer_id))
        async with self._deps.database.reading() as connection:
            page = await bookings.list_page(
                connection,
                matches=matches,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return booking_service_pb2.ListEventBookingsResponse(
            bookings=[proto.booking(booking) for booking in page.bookings],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def CheckoutBooking(
        self, request: booking_service_pb2.CheckoutBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return await _shielded(
            checkout.start(
                self._deps,
                key=key_of_call("CheckoutBooking", request),
                booking_id=UUID(request.booking_id),
                owner=caller().owner_scope,
                by=_by(),
                checkout=self._checkout(request),
                encode=_encode,
            ),
            seconds=_CHECKOUT_SECONDS,
        )

    async def CancelBooking(
        self, request: booking_service_pb2.CancelBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return await _shielded(
            cancellation.cancel_booking(
                self._deps,
                key=key_of_call("CancelBooking", request),
                booking_id=UUID(request.booking_id),
                owner=caller().owner_scope,
                by=_by(),
                reason=request.reason,
                encode=_encode,
                staff_refund=_staff_refund(request),
            ),
            seconds=_CANCEL_SECONDS,
        )

    async def PreviewCancellation(
        self, request: booking_service_pb2.PreviewCancellationRequest, context: Any
    ) -> booking_service_pb2.CancellationPreview:
        async with self._deps.database.reading() as connection:
            return proto.preview(
                await cancellation.preview(
                    connection,
                    booking_id=UUID(request.booking_id),
                    owner=caller().owner_scope,
                    keep=[_kept(text) for text in request.keep] or None,
                    now=self._deps.clock(),
                )
            )

    async def UpdateBooking(
        self, request: booking_service_pb2.UpdateBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return await _shielded(
            modification.update(
                self._deps,
                key=key_of_call("UpdateBooking", request),
                booking_id=UUID(request.booking_id),
                owner=caller().owner_scope,
                by=_by(),
                patch=BookingPatch(
                    items=[_requested(item) for item in request.items],
                    attendees=_attendees(request),
                    note=request.note if request.HasField("note") else None,
                    staff_refund=_staff_refund(request),
                ),
                checkout=self._checkout(request.checkout, "checkout.")
                if request.HasField("checkout")
                else None,
                encode=_encode,
                shown=_shown(request),
                admission_token=request.admission_token,
            ),
            seconds=_CHANGE_SECONDS,
        )

    async def RescheduleBooking(
        self, request: booking_service_pb2.RescheduleBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return await _shielded(
            modification.reschedule(
                self._deps,
                key=key_of_call("RescheduleBooking", request),
                booking_id=UUID(request.booking_id),
                owner=caller().owner_scope,
                by=_by(),
                event_id=UUID(request.event_id),
                items=[_requested(item) for item in request.items],
                checkout=self._checkout(request.checkout, "checkout.")
                if request.HasField("checkout")
                else None,
                encode=_encode,
                shown=_shown(request),
                staff_refund=_staff_refund(request),
                admission_token=request.admission_token,
            ),
            seconds=_CHANGE_SECONDS,
        )

    def _checkout(
        self,
        message: booking_service_pb2.Checkout | booking_service_pb2.CheckoutBookingRequest,
        prefix: str = "",
    ) -> Checkout:
        def address(name: str) -> str:
            return return_addresses.checked(
                getattr(message, name),
                field=prefix + name,
                is_http_allowed=self._deps.is_http_allowed,
            )

        return Checkout(
            message.provider,
            address("success_url"),
            address("cancel_url"),
            is_embedded=message.flow == booking_service_pb2.Checkout.EMBEDDED,
            prefix=prefix,
        )


async def _shielded(call: Coroutine[Any, Any, bytes], *, seconds: float) -> booking_pb2.Booking:
    """The answer of a call that continues if the client disconnects."""
    return booking_pb2.Booking.FromString(await shielded(call, seconds=seconds))


def _by() -> By:
    """The caller as an actor: staff, or the customer."""
    user = caller()
    return By(Actor.STAFF if user.is_staff else Actor.CUSTOMER, user.user())


def _staff_refund(
    request: booking_service_pb2.CancelBookingRequest
    | booking_service_pb2.UpdateBookingRequest
    | booking_service_pb2.RescheduleBookingRequest,
) -> StaffRefund | None:
    """The refund that the caller decides. Raises STAFF_REQUIRED if it is a customer."""
    percent = request.refund_percent if request.HasField("refund_percent") else None
    amount = money_from_proto(request.refund_amount) if request.HasField("refund_amount") else None
    if percent is None and amount is None:
        return None
    if not caller().is_staff:
        raise DomainError(
            Reason.STAFF_REQUIRED,
            "only staff can give `refund_percent` or `refund_amount`: the cancellation policy"
            " decides the refund",
        )
    return StaffRefund(percent, amount)


def _attendees(request: booking_service_pb2.UpdateBookingRequest) -> list[str] | None:
    """The names to set, without surrounding spaces; None keeps the present ones."""
    if request.clear_attendees:
        return []
    return [name.strip() for name in request.attendees] or None


def _encode(booking: Booking) -> bytes:
    return proto.booking(booking).SerializeToString()


def _requested(item: booking_service_pb2.PlaceBookingRequest.Item) -> RequestedItem:
    return RequestedItem(
        offer_id=UUID(item.offer_id) if item.HasField("offer_id") else None,
        quantity=1 if item.HasField("seat_id") else item.quantity,
        seat_id=UUID(item.seat_id) if item.HasField("seat_id") else None,
    )


def _shown(
    request: booking_service_pb2.PlaceBookingRequest
    | booking_service_pb2.UpdateBookingRequest
    | booking_service_pb2.RescheduleBookingRequest,
) -> ShownPrice:
    total = request.expected_total
    if not request.HasField("expected_total"):
        return ShownPrice(None, request.event_etag) if request.event_etag else NOT_SHOWN
    return ShownPrice(money_from_proto(total), request.event_etag)


def _kept(text: str) -> RequestedItem:
    """`<offer_id>:<quantity>` or `<seat_id>`."""
    name, _, quantity = text.partition(":")
    return (
        RequestedItem(UUID(name), int(quantity), None)
        if quantity
        else RequestedItem(None, 1, UUID(name))
    )


def _status(value: booking_pb2.Booking.Status.ValueType) -> Status | None:
    return None if value == 0 else Status(booking_pb2.Booking.Status.Name(value))


def _customer_id(request: booking_service_pb2.ListBookingsRequest) -> UUID | None:
    """Whose bookings are listed. Raises STAFF_REQUIRED if they are not the caller's."""
    user, requested = caller(), _id(request.customer_id)
    if not request.query and requested in (None, user.user()):
        return user.user()
    if not user.is_staff:
        raise DomainError(
            Reason.STAFF_REQUIRED, "only staff can list the bookings of others or give `query`"
        )
    return requested


def _filter(
    request: booking_service_pb2.ListBookingsRequest | booking_service_pb2.ListEventBookingsRequest,
    customer_id: UUID | None,
) -> Filter:
    def time(field: Literal["created_after", "created_before"]) -> datetime | None:
        return time_from_proto(getattr(request, field), field) if request.HasField(field) else None

    return Filter(
        customer_id=customer_id,
        event_id=_id(request.event_id),
        status=_status(request.status),
        created_after=time("created_after"),
        created_before=time("created_before"),
        query=request.query,
    )


def _id(text: str) -> UUID | None:
    return UUID(text) if text else None
