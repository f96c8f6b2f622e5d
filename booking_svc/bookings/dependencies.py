"""What the orchestration of bookings needs: the first argument of its functions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from booking_svc.bookings.admission import Admissions, NoAdmissions
from booking_svc.bookings.batch_writer import BatchWriter
from booking_svc.clients.ports import Payments, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites


@dataclass(frozen=True, slots=True)
class Dependencies:
    """`is_http_allowed`: whether a payment page may return to http addresses, in development.
    `default_provider` pays a checkout that names none; empty if it must name one.
    `admissions` decides who may book events with a waiting room.
    `on_steps_enqueued` is called after a commit that enqueued steps, to run them at once.
    """

    database: Database
    writes: IdempotentWrites
    stock: Stock
    payments: Payments
    clock: Clock
    hold_ttl: timedelta
    payment_window: timedelta
    on_steps_enqueued: Callable[[], None]
    batch_writer: BatchWriter
    is_http_allowed: bool = False
    default_provider: str = ""
    admissions: Admissions = field(default_factory=NoAdmissions)
