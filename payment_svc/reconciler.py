"""Reconciles payments with their providers, so that no effect depends on a webhook.

Open payments are checked with growing pauses. Recent movements are compared every
_COMPARE_SECONDS, and each day once as a whole.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup, run_forever
from mesh.errors import DomainError
from mesh.observability import metrics
from mesh.tasks import shielded
from payment_svc import comparison, payments, unmatched
from payment_svc.payment_reports import Outcome
from payment_svc.payments import Payment
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import LIST_SECONDS, Movement, MovementKind, Provider

_CHECK_BATCH = 16
_CHECK_IDLE_SECONDS = 3.0
_CHECK_BATCH_SECONDS = 20.0
_COMPARE_SECONDS = 300.0
# Longer than the pause between two comparisons: they overlap.
_WINDOW = timedelta(minutes=20)
# A day is compared this long after its end, when its late movements are listed.
_DAY_DELAY = timedelta(hours=1)

_OPEN = metrics.gauge(
    "payments_unexplained",
    "Open unmatched items: webhooks and movements that match no record.",
    "provider",
)

_log = logging.getLogger(__name__)


class Reconciler:
    """Compares payments and movements with the providers' records."""

    def __init__(
        self,
        database: Database,
        calls: ProviderCalls,
        providers: Mapping[str, Provider],
        clock: Clock,
        check_wanted: Wakeup,
    ) -> None:
        self._database = database
        self._calls = calls
        self._providers = providers
        self._clock = clock
        self._check_wanted = check_wanted

    async def run_checks(self) -> None:
        """Checks open payments as they fall due. Runs until cancelled."""
        await run_forever(
            "payment checks",
            lambda: shielded(self.check_due(), seconds=_CHECK_BATCH_SECONDS),
            wake=self._check_wanted,
            idle_seconds=_CHECK_IDLE_SECONDS,
        )

    async def check_due(self) -> int:
        """Checks one batch of due payments. Returns how many it leased."""
        async with self._database.single() as connection:
            due = await payments.lease_checks(
                connection,
                providers=list(self._providers),
                now=self._clock(),
                limit=_CHECK_BATCH,
            )
        await asyncio.gather(*map(self._check, due))
        return len(due)

    async def compare_turn(self) -> None:
        """One turn of the loop that compares movements, and the pause after it."""
        now = self._clock()
        for name in self._providers:
            try:
                await self.compare(name, since=now - _WINDOW, until=now)
                await self.compare_day(name, (now - _DAY_DELAY).date() - timedelta(days=1))
            except DomainError as error:
                _log.warning(
                    "a provider's movements could not be listed",
                    extra={"provider": name, "code": error.metadata.get("code")},
                )
        await self._count_unmatched()
        await asyncio.sleep(_COMPARE_SECONDS)

    async def compare(self, name: str, *, since: datetime, until: datetime) -> int:
        """Applies every movement that is not recorded. Returns their number."""
        movements = await self._movements(name, since=since, until=until)
        async with self._database.reading() as connection:
            differences = await comparison.differences(
                connection, provider=name, movements=movements
            )
        for movement in differences.unrecorded:
            (outcome,) = await self._calls.apply_reports(name, [movement.report])
            if outcome is Outcome.UNMATCHED:
                await self._record_unmatched(name, unmatched.Kind(movement.kind), movement)
        for movement in differences.other_amount:
            await self._record_unmatched(name, unmatched.Kind.OTHER_AMOUNT, movement)
        return len(differences.unrecorded)

    async def compare_day(self, name: str, day: date) -> None:
        """Compares a whole day, once. Stores its totals and the movements that one side lacks."""
        async with self._database.reading() as connection:
            if await comparison.is_compared(connection, provider=name, day=day):
                return
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        end = start + timedelta(days=1)
        await self.compare(name, since=start, until=end)
        # Wider than the day: the clocks of the two sides differ.
        around = await self._movements(name, since=start - _DAY_DELAY, until=end + _DAY_DELAY)
        async with self._database.transaction() as connection:
            missing = await comparison.close_day(
                connection, provider=name, start=start, movements=around, now=self._clock()
            )
            for movement in missing:
                kind = (
                    unmatched.Kind.MISSING_CAPTURE
                    if movement.kind is MovementKind.CAPTURE
                    else unmatched.Kind.MISSING_REFUND
                )
                await unmatched.record(
                    connection,
                    provider=name,
                    kind=kind,
                    reference=movement.reference,
                    payment_id=movement.payment_id,
                    amount=movement.amount,
                    now=self._clock(),
                )

    async def _check(self, payment: Payment) -> None:
        try:
            await self._calls.check(payment)
        except DomainError as error:
            # The lease has set the time of the next check.
            _log.warning(
                "a payment could not be checked",
                extra={"payment_id": str(payment.payment_id), "code": error.metadata.get("code")},
            )

    async def _movements(self, name: str, *, since: datetime, until: datetime) -> list[Movement]:
        async with self._calls.calling(name, seconds=LIST_SECONDS):
            return list(await self._providers[name].movements(since=since, until=until))

    async def _record_unmatched(self, name: str, kind: unmatched.Kind, movement: Movement) -> None:
        async with self._database.transaction() as connection:
            is_new = await unmatched.record(
                connection,
                provider=name,
                kind=kind,
                reference=movement.reference,
                payment_id=movement.report.payment_id,
                amount=movement.amount,
                now=self._clock(),
            )
        if is_new:
            _log.error(
                "a provider's movement matches no record",
                extra={"provider": name, "kind": kind, "reference": movement.reference},
            )

    async def _count_unmatched(self) -> None:
        async with self._database.reading() as connection:
            counts = await unmatched.count_open(connection)
        for name in self._providers:
            _OPEN.labels(name).set(counts.get(name, 0))
