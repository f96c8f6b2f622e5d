"""Conversions from bookings to the contract's messages."""

from booking_svc.bookings.bookings import Booking, PaymentStatus, PendingChange, Refund, Status
from booking_svc.catalogue.cancellation_policy import Preview
from booking_svc.catalogue.proto import policy
from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2
from mesh.conversions import id_to_proto, money_to_proto, time_to_proto

_UNPAID = (Status.HELD, Status.PENDING_PAYMENT)
_PAYABLE = (PaymentStatus.CREATED, PaymentStatus.FAILED)


def booking(value: Booking) -> booking_pb2.Booking:
    message = booking_pb2.Booking(
        booking_id=str(value.booking_id),
        event_id=str(value.event_id),
        customer_id=str(value.customer_id),
        status=booking_pb2.Booking.Status.Value(value.status),
        items=[
            booking_pb2.BookingItem(
                offer_id=str(item.offer_id),
                seat_id=id_to_proto(item.seat_id),
                quantity=item.quantity,
                unit_price=money_to_proto(item.unit_price),
            )
            for item in value.items
        ],
        total=money_to_proto(value.total),
        hold_expire_time=time_to_proto(value.hold_expire_time),
        cancellation_policy=policy(value.cancellation_policy),
        timeline=[
            booking_pb2.TimelineEntry(
                time=time_to_proto(entry.time),
                status=booking_pb2.Booking.Status.Value(entry.status),
                reason=entry.reason,
                actor=booking_pb2.TimelineEntry.Actor.Value(entry.actor),
                failure_code=entry.failure_code,
            )
            for entry in value.timeline
        ],
        create_time=time_to_proto(value.create_time),
        update_time=time_to_proto(value.update_time),
        confirm_time=time_to_proto(value.confirm_time),
        attendees=value.attendees,
        note=value.note,
        max_refund_percent=value.max_refund_percent,
    )
    if value.payment is not None:
        is_open = value.status in _UNPAID and value.payment.status in _PAYABLE
        message.payment.CopyFrom(
            booking_pb2.BookingPayment(
                payment_id=str(value.payment.payment_id),
                provider=value.payment.provider,
                status=booking_pb2.BookingPayment.Status.Value(value.payment.status),
                payment_url=value.payment.payment_url or "",
                client_secret=value.payment.client_secret if is_open else None,
                expire_time=time_to_proto(value.hold_expire_time) if is_open else None,
            )
        )
    if value.change is not None:
        message.change.CopyFrom(_change(value.change))
    if value.refunds:
        message.refunds.extend(map(_refund, value.refunds))
        message.refund.CopyFrom(message.refunds[-1])
    return message


def _change(value: PendingChange) -> booking_pb2.BookingChange:
    return booking_pb2.BookingChange(
        change_id=str(value.change_id),
        event_id=str(value.event_id),
        difference=money_to_proto(value.difference),
        expire_time=time_to_proto(value.expire_time),
        payment=booking_pb2.BookingPayment(
            payment_id=str(value.payment_id),
            provider=value.provider,
            status=booking_pb2.BookingPayment.CREATED,
            payment_url=value.payment_url or "",
            client_secret=value.client_secret,
            expire_time=time_to_proto(value.expire_time),
        ),
    )


def preview(value: Preview) -> booking_service_pb2.CancellationPreview:
    return booking_service_pb2.CancellationPreview(
        refundable=value.refundable,
        amount=money_to_proto(value.amount),
        percent=value.percent,
        reason=value.reason,
        deadline=time_to_proto(value.deadline),
    )


def _refund(value: Refund) -> booking_pb2.BookingRefund:
    return booking_pb2.BookingRefund(
        refund_id=str(value.refund_id),
        amount=money_to_proto(value.amount),
        status=booking_pb2.BookingRefund.Status.Value(value.status),
        payment_id=str(value.payment_id),
        reason=value.reason,
    )
