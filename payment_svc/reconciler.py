"""Asks providers what we may not have heard: it alone, without one webhook, ends everything.

Payments that are not final are asked for with growing pauses, at most five minutes long.
What moved lately is compared every few minutes, and each day once more as a whole.
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
_CHECK_IDLE_SECONDS = 1.0
_CHECK_BATCH_SECONDS = 20.0
_COMPARE_SECONDS = 300.0
# Longer than the pause between two looks, so that nothing falls between them.
_WINDOW = timedelta(minutes=20)
# A day is compared when everything about it has had this long to arrive.
_DAY_SETTLES = timedelta(hours=1)

_OPEN = metrics.gauge(
    "payments_unexplained", "Things between us and a provider that nobody can explain.", "provider"
)

_log = logging.getLogger(__name__)


class Reconciler:
    """Compares what we know with what the providers know."""

    def __init__(
        self,
        database: Database,
        cashier: ProviderCalls,
        providers: Mapping[str, Provider],
        clock: Clock,
        check_wanted: Wakeup,
    ) -> None:
        self._database = database
        self._cashier = cashier
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
                await self.compare_day(name, (now - _DAY_SETTLES).date() - timedelta(days=1))
            except DomainError as error:
                _log.warning(
                    "a provider's movements could not be read",
                    extra={"provider": name, "code": error.metadata.get("code")},
                )
        await self._count()
        await asyncio.sleep(_COMPARE_SECONDS)

    async def compare(self, name: str, *, since: datetime, until: datetime) -> int:
        """Makes the effect of every movement that we had not heard of. Returns how many."""
        movements = await self._movements(name, since=since, until=until)
        async with self._database.reading() as connection:
            news = await comparison.news(connection, provider=name, movements=movements)
        for movement in news.unheard:
            (outcome,) = await self._cashier.apply_report(name, [movement.report])
            if outcome is Outcome.UNMATCHED:
                await self._explain(name, unmatched.Kind(movement.kind), movement)
        for movement in news.other_amount:
            await self._explain(name, unmatched.Kind.OTHER_AMOUNT, movement)
        return len(news.unheard)

    async def compare_day(self, name: str, day: date) -> None:
        """Compares a whole day, once: its totals are kept, and what one side lacks."""
        async with self._database.reading() as connection:
            if await comparison.is_done(connection, provider=name, day=day):
                return
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        end = start + timedelta(days=1)
        await self.compare(name, since=start, until=end)
        # Wider than the day: the two sides' clocks put the same movement at other seconds.
        around = await self._movements(name, since=start - _DAY_SETTLES, until=end + _DAY_SETTLES)
        async with self._database.transaction() as connection:
            missing = await comparison.close_day(
                connection, provider=name, start=start, movements=around, now=self._clock()
            )
            for one in missing:
                kind = (
                    unmatched.Kind.MISSING_CAPTURE
                    if one.kind is MovementKind.CAPTURE
                    else unmatched.Kind.MISSING_REFUND
                )
                await unmatched.record(
                    connection,
                    provider=name,
                    kind=kind,
                    reference=one.reference,
                    payment_id=one.payment_id,
                    amount=one.amount,
                    now=self._clock(),
                )

    async def _check(self, payment: Payment) -> None:
        try:
            await self._cashier.check(payment)
        except DomainError as error:
            # The lease has set the time of the next try.
            _log.warning(
                "a payment could not be asked for",
                extra={"payment_id": str(payment.payment_id), "code": error.metadata.get("code")},
            )

    async def _movements(self, name: str, *, since: datetime, until: datetime) -> list[Movement]:
        async with self._cashier.calling(name, seconds=LIST_SECONDS):
            return list(await self._providers[name].movements(since=since, until=until))

    async def _explain(self, name: str, kind: unmatched.Kind, movement: Movement) -> None:
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
                "a provider moved money that we cannot explain",
                extra={"provider": name, "kind": kind, "reference": movement.reference},
            )

    async def _count(self) -> None:
        async with self._database.reading() as connection:
            counts = await unmatched.count_open(connection)
        for name in self._providers:
            _OPEN.labels(name).set(counts.get(name, 0))
