"""The migrations, tables.py, the domain's states and the contract say the same."""

from collections.abc import Callable
from enum import StrEnum

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from booking_svc.bookings import bookings, saga_steps, state_machine
from booking_svc.notifications import tables as _notifications  # noqa: F401 - adds its tables
from booking_svc.tables import metadata
from booking_svc.webhooks import tables as _subscriptions  # noqa: F401 - adds its tables
from boxoffice.bookings.v1 import booking_pb2


def test_the_migrations_make_what_the_tables_say(new_database: Callable[[str], str]) -> None:
    engine = sa.create_engine(new_database("booking_svc"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = described(connection)
    engine.dispose()
    known = {
        *(f"'{each}'" for each in saga_steps.StepKind),
        *(f"'{each}'" for each in bookings.Status),
        *(f"'{each}'" for each in bookings.Actor),
    }
    written = " ".join(
        migrated[f"{name}_check"]
        for name in ("booking_steps_kind", "bookings_status", "booking_timeline_actor")
    )
    assert {each for each in known if each not in written} == set()
    # Alembic does not compare CHECK constraints: their names and number at least.
    declared = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert declared == set(migrated)


def described(connection: sa.Connection) -> dict[str, str]:
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
def test_the_contract_knows_the_same_values(
    domain: type[StrEnum], contract: EnumTypeWrapper
) -> None:
    named = {name for name, number in contract.items() if number != 0}
    assert named == set(domain)


def test_every_state_has_its_moves() -> None:
    assert state_machine.MOVES.keys() == set(bookings.Status)
