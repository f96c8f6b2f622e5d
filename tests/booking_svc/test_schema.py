"""The migrations, the tables, the domain's states and the contract agree."""

from collections.abc import Callable
from enum import StrEnum

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from booking_svc.bookings import bookings, saga_steps, state_machine
from booking_svc.notifications import tables as _notifications  # noqa: F401 - adds its tables
from booking_svc.queueing import tables as _queueing  # noqa: F401 - adds its tables
from booking_svc.tables import metadata
from booking_svc.webhooks import tables as _webhooks  # noqa: F401 - adds its tables
from boxoffice.bookings.v1 import booking_pb2


def test_the_migrations_create_the_tables_of_the_code(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("booking_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        checks = check_constraints(connection)
    engine.dispose()
    values = {
        *(f"'{kind}'" for kind in saga_steps.StepKind),
        *(f"'{status}'" for status in bookings.Status),
        *(f"'{actor}'" for actor in bookings.Actor),
    }
    allowed = " ".join(
        checks[f"{name}_check"]
        for name in ("booking_steps_kind", "bookings_status", "booking_timeline_actor")
    )
    assert {value for value in values if value not in allowed} == set()
    # Alembic does not compare CHECK constraints: compare at least their names.
    declared = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert declared == set(checks)


def check_constraints(connection: sa.Connection) -> dict[str, str]:
    inspector = sa.inspect(connection)
    return {
        str(check["name"]): check["sqltext"]
        for table in metadata.tables
        for check in inspector.get_check_constraints(table)
    }


@pytest.mark.parametrize(
    ("domain", "contract"),
    [
        (bookings.Status, booking_pb2.Booking.Status),
        (bookings.PaymentStatus, booking_pb2.BookingPayment.Status),
        (bookings.RefundStatus, booking_pb2.BookingRefund.Status),
        (bookings.Actor, booking_pb2.TimelineEntry.Actor),
    ],
)
def test_the_contract_has_the_same_values(domain: type[StrEnum], contract: EnumTypeWrapper) -> None:
    names = {name for name, number in contract.items() if number != 0}
    assert names == set(domain)


def test_every_state_has_its_moves() -> None:
    assert state_machine.MOVES.keys() == set(bookings.Status)
