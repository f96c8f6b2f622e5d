"""Domain values ⇄ the contract's messages. Shapes only: no rule is decided here."""

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from booking_svc import cancellation
from booking_svc.bookings import Booking
from booking_svc.events import DEFAULT_CURRENCY, Event, NewEvent, NewOffer
from booking_svc.ports import Left
from booking_svc.venues import Auditorium, Row, Seat, Venue
from boxoffice.bookings.v1 import booking_pb2
from boxoffice.catalogue.v1 import event_pb2, event_service_pb2, venue_pb2
from boxoffice.types.v1 import money_pb2
from mesh.ids import new_id
from mesh.money import Money


def money(value: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=value.currency_code, amount_minor=value.amount_minor)


def time(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def to_time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def venue(value: Venue) -> venue_pb2.Venue:
    return venue_pb2.Venue(
        venue_id=str(value.venue_id),
        name=value.name,
        time_zone=value.time_zone,
        address=value.address,
    )


def auditorium(value: Auditorium) -> venue_pb2.Auditorium:
    return venue_pb2.Auditorium(
        auditorium_id=str(value.auditorium_id),
        venue_id=str(value.venue_id),
        name=value.name,
        rows=[
            venue_pb2.Row(
                label=row.label,
                seats=[
                    venue_pb2.Seat(
                        seat_id=str(seat.seat_id),
                        number=seat.number,
                        seat_type=venue_pb2.Seat.Type.Value(seat.seat_type),
                        x=seat.x,
                        y=seat.y,
                    )
                    for seat in row.seats
                ],
            )
            for row in value.rows
        ],
    )


def to_row(message: venue_pb2.Row) -> Row:
    """A row as asked for; its seats get new ids."""
    return Row(
        message.label,
        tuple(
            Seat(
                new_id(),
                seat.number,
                venue_pb2.Seat.Type.Name(seat.seat_type),
                seat.x if seat.HasField("x") else None,
                seat.y if seat.HasField("y") else None,
            )
            for seat in message.seats
        ),
    )


def to_new_event(message: event_pb2.Event) -> NewEvent:
    return NewEvent(
        name=message.name,
        description=message.description,
        production_id=UUID(message.production_id) if message.HasField("production_id") else None,
        auditorium_id=UUID(message.auditorium_id) if message.HasField("auditorium_id") else None,
        venue_name=message.venue_name if message.HasField("venue_name") else None,
        time_zone=message.time_zone,
        start_time=to_time(message.start_time) if message.HasField("start_time") else None,
        end_time=to_time(message.end_time) if message.HasField("end_time") else None,
        sale_start_time=to_time(message.sale_start_time),
        sale_end_time=to_time(message.sale_end_time) if message.HasField("sale_end_time") else None,
        currency_code=message.currency_code or DEFAULT_CURRENCY,
        offers=tuple(
            NewOffer(
                name=offer.name,
                price=Money(offer.price.amount_minor, offer.price.currency_code),
                # An offer that names no pool has one of its own.
                pool=offer.pool_id or f"offer {index}",
                capacity=offer.capacity if offer.HasField("capacity") else None,
                seat_type=venue_pb2.Seat.Type.Name(offer.seat_type)
                if offer.HasField("seat_type")
                else None,
                per_customer_limit=offer.per_customer_limit,
                max_per_booking=offer.max_per_booking,
            )
            for index, offer in enumerate(message.offers)
        ),
        cancellation_policy=_to_policy(message.cancellation_policy)
        if message.HasField("cancellation_policy")
        else None,
    )


def event(value: Event, left: Left, now: datetime) -> event_pb2.Event:
    return event_pb2.Event(
        event_id=str(value.event_id),
        name=value.name,
        description=value.description,
        production_id=_optional(value.production_id),
        auditorium_id=_optional(value.auditorium_id),
        venue_name=value.venue_name,
        time_zone=value.time_zone,
        start_time=time(value.start_time),
        end_time=time(value.end_time),
        sale_start_time=time(value.sale_start_time),
        sale_end_time=time(value.sale_end_time),
        status=event_pb2.Event.Status.Value(value.status_at(now, available=left.available)),
        currency_code=value.currency_code,
        offers=[
            event_pb2.Offer(
                offer_id=str(offer.offer_id),
                name=offer.name,
                price=money(offer.price),
                pool_id=str(offer.pool_id),
                capacity=offer.capacity,
                seat_type=None
                if offer.seat_type is None
                else venue_pb2.Seat.Type.Value(offer.seat_type),
                per_customer_limit=offer.per_customer_limit,
                max_per_booking=offer.max_per_booking,
                available=left.offers.get(offer.offer_id, 0),
            )
            for offer in value.offers
        ],
        cancellation_policy=policy(value.cancellation_policy),
        total_capacity=left.capacity,
        available=left.available,
        create_time=time(value.create_time),
        update_time=time(value.update_time),
        etag=f'"{value.revision}"',
    )


def availability(event_id: UUID, left: Left) -> event_service_pb2.Availability:
    return event_service_pb2.Availability(
        event_id=str(event_id),
        version=left.version,
        offers=[
            event_service_pb2.OfferAvailability(offer_id=str(offer_id), available=available)
            for offer_id, available in left.offers.items()
        ],
        seats=[
            event_service_pb2.SeatAvailability(
                seat_id=str(seat_id), state=event_service_pb2.SeatAvailability.State.Value(state)
            )
            for seat_id, state in left.seats.items()
        ],
    )


def policy(value: cancellation.Policy) -> event_pb2.CancellationPolicy:
    message = event_pb2.CancellationPolicy()
    if isinstance(value, cancellation.PurchaseWindow):
        message.purchase_window.window.FromTimedelta(value.window)
        return message
    for tier in value.tiers:
        added = message.tiered.tiers.add(percent=tier.percent, exclusive=tier.exclusive)
        added.before_start.FromTimedelta(tier.before_start)
    return message


def _to_policy(message: event_pb2.CancellationPolicy) -> cancellation.Policy | None:
    kind = message.WhichOneof("rule")
    if kind == "purchase_window":
        return cancellation.PurchaseWindow(message.purchase_window.window.ToTimedelta())
    if kind == "tiered":
        return cancellation.Tiered(
            tuple(
                cancellation.Tier(tier.before_start.ToTimedelta(), tier.percent, tier.exclusive)
                for tier in message.tiered.tiers
            )
        )
    return None


def booking(value: Booking) -> booking_pb2.Booking:
    message = booking_pb2.Booking(
        booking_id=str(value.booking_id),
        event_id=str(value.event_id),
        customer_id=str(value.customer_id),
        status=booking_pb2.Booking.Status.Value(value.status),
        items=[
            booking_pb2.BookingItem(
                offer_id=str(item.offer_id),
                seat_id=_optional(item.seat_id),
                quantity=item.quantity,
                unit_price=money(item.unit_price),
            )
            for item in value.items
        ],
        total=money(value.total),
        hold_expire_time=time(value.hold_expire_time),
        cancellation_policy=policy(value.cancellation_policy),
        timeline=[
            booking_pb2.TimelineEntry(
                time=time(entry.time),
                status=booking_pb2.Booking.Status.Value(entry.status),
                reason=entry.reason,
            )
            for entry in value.timeline
        ],
        create_time=time(value.create_time),
        update_time=time(value.update_time),
        confirm_time=time(value.confirm_time),
    )
    if value.payment is not None:
        message.payment.CopyFrom(
            booking_pb2.BookingPayment(
                payment_id=str(value.payment.payment_id),
                provider=value.payment.provider,
                status=booking_pb2.BookingPayment.Status.Value(value.payment.status),
                payment_url=value.payment.payment_url or "",
            )
        )
    if value.refund is not None:
        message.refund.CopyFrom(
            booking_pb2.BookingRefund(
                refund_id=str(value.refund.refund_id),
                amount=money(value.refund.amount),
                status=booking_pb2.BookingRefund.Status.Value(value.refund.status),
            )
        )
    return message


def _optional(value: UUID | None) -> str | None:
    return None if value is None else str(value)
