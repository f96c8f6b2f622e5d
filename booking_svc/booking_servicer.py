"""BookingService: proto → one domain call → proto."""

from typing import Any
from uuid import UUID

from booking_svc import bookings, messages
from booking_svc.bookings import Booking, Status
from booking_svc.saga import Checkout, Saga, Wanted
from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2, booking_service_pb2_grpc
from mesh import paging
from mesh.call import caller, idempotency_key
from mesh.database import Database
from mesh.idempotency import key_for
from mesh.tasks import shielded

# Steps that touch stock or money go on for so long after the client has left.
_PLACE_SECONDS = 9.5
_CHECKOUT_SECONDS = 9.5
_CANCEL_SECONDS = 4.5


class BookingServicer(booking_service_pb2_grpc.BookingServiceServicer):
    def __init__(self, database: Database, saga: Saga) -> None:
        self._database = database
        self._saga = saga

    async def PlaceBooking(
        self, request: booking_service_pb2.PlaceBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        customer_id = caller().user()
        answer = await shielded(
            self._saga.place(
                key=key_for("PlaceBooking", customer_id, idempotency_key() or "", request),
                customer_id=customer_id,
                event_id=UUID(request.event_id),
                wanted=[_wanted(item) for item in request.items],
                checkout=_checkout(request.checkout) if request.HasField("checkout") else None,
                encode=_encode,
            ),
            seconds=_PLACE_SECONDS,
        )
        return booking_pb2.Booking.FromString(answer)

    async def GetBooking(
        self, request: booking_service_pb2.GetBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        async with self._database.reading() as connection:
            return messages.booking(
                await bookings.get(
                    connection, booking_id=UUID(request.booking_id), owner=caller().owner_scope
                )
            )

    async def ListBookings(
        self, request: booking_service_pb2.ListBookingsRequest, context: Any
    ) -> booking_service_pb2.ListBookingsResponse:
        async with self._database.reading() as connection:
            page = await bookings.list_page(
                connection,
                customer_id=caller().user(),
                status=_status(request.status),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return booking_service_pb2.ListBookingsResponse(
            bookings=[messages.booking(each) for each in page.bookings],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def ListEventBookings(
        self, request: booking_service_pb2.ListEventBookingsRequest, context: Any
    ) -> booking_service_pb2.ListEventBookingsResponse:
        async with self._database.reading() as connection:
            page = await bookings.list_page(
                connection,
                event_id=UUID(request.event_id),
                status=_status(request.status),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return booking_service_pb2.ListEventBookingsResponse(
            bookings=[messages.booking(each) for each in page.bookings],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def CheckoutBooking(
        self, request: booking_service_pb2.CheckoutBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return messages.booking(
            await shielded(
                self._saga.checkout(
                    booking_id=UUID(request.booking_id),
                    owner=caller().owner_scope,
                    checkout=_checkout(request),
                ),
                seconds=_CHECKOUT_SECONDS,
            )
        )

    async def CancelBooking(
        self, request: booking_service_pb2.CancelBookingRequest, context: Any
    ) -> booking_pb2.Booking:
        return messages.booking(
            await shielded(
                self._saga.cancel(
                    booking_id=UUID(request.booking_id),
                    owner=caller().owner_scope,
                    reason=request.reason,
                ),
                seconds=_CANCEL_SECONDS,
            )
        )


def _encode(booking: Booking) -> bytes:
    return messages.booking(booking).SerializeToString()


def _wanted(item: booking_service_pb2.PlaceBookingRequest.Item) -> Wanted:
    return Wanted(
        offer_id=UUID(item.offer_id) if item.HasField("offer_id") else None,
        quantity=item.quantity,
        seat_id=UUID(item.seat_id) if item.HasField("seat_id") else None,
    )


def _checkout(
    message: booking_service_pb2.Checkout | booking_service_pb2.CheckoutBookingRequest,
) -> Checkout:
    return Checkout(message.provider, message.success_url, message.cancel_url)


def _status(value: booking_pb2.Booking.Status.ValueType) -> Status | None:
    return None if value == 0 else Status(booking_pb2.Booking.Status.Name(value))
