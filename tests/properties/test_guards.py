"""Each guard of stock, bookings and money is needed: without it, a test fails.

A guard is taken out of a copy of the project, one at a time. The short version takes out
one of each service and sees that the texts of all others are still where this file says;
`--long` takes out each.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.paths import ROOT

MACHINE = "tests/stock_svc/test_ledger_machine.py"
RACES = "tests/concurrency/test_stock_race.py"
PLACING = "tests/booking_svc/bookings/test_placement.py"
CHANGED_TERMS = "tests/booking_svc/bookings/test_changed_terms.py"
KEPT = "tests/stock_svc/test_waiting_list.py"
WAITING_LIST = "tests/booking_svc/queueing/test_waiting_list.py"
LIFE = "tests/booking_svc/bookings/test_state_machine.py"
# With the bytecode, which is valid in the copy: its files have the times of the project's.
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".boxoffice", ".*_cache")


@dataclass(frozen=True, slots=True)
class RemovedGuard:
    """Where a guard stands, what the file says without it, and who must notice."""

    name: str
    file: str
    text: str
    without: str
    noticed_by: str = MACHINE


GUARDS = [
    RemovedGuard(
        "places left",
        "stock_svc/allocation.py",
        "if demand.by_pool[pool] > free[pool]:",
        "if False:",
    ),
    RemovedGuard(
        "seats taken", "stock_svc/allocation.py", "if seat in remaining.taken]", "if False]"
    ),
    RemovedGuard(
        "purchase limit", "stock_svc/allocation.py", "if owned + quantity > limit:", "if False:"
    ),
    RemovedGuard(
        "purchase limit of the event",
        "stock_svc/allocation.py",
        "if limit is None or owned + demand.places <= limit:",
        "if True:",
    ),
    RemovedGuard(
        "places a batch took before",
        "stock_svc/allocation.py",
        "remaining.free[pool] -= quantity",
        "pass",
    ),
    RemovedGuard(
        "seats a batch took before",
        "stock_svc/allocation.py",
        "remaining.taken |= set(demand.seats)",
        "pass",
    ),
    RemovedGuard(
        "places left, in the statement",
        "stock_svc/statements.py",
        "  AND pools.held + input.held + pools.sold + input.sold"
        " <= pools.capacity + input.capacity\n",
        "",
        RACES,
    ),
    RemovedGuard(
        "blocked seats", "stock_svc/statements.py", "seats.blocked OR EXISTS (", "EXISTS ("
    ),
    RemovedGuard(
        "totals given back",
        "stock_svc/statements.py",
        "SET quantity = totals.quantity - input.quantity",
        "SET quantity = totals.quantity",
    ),
    RemovedGuard(
        "lapsed holds cleared",
        "stock_svc/reserve.py",
        "        if with_lapsed:\n",
        "        if False:\n",
    ),
    RemovedGuard(
        "one reservation for a key",
        "stock_svc/reserve.py",
        "        if existing.has_lapsed(self.now):\n            return False\n",
        "        return False\n",
    ),
    RemovedGuard(
        "a lapsed one is not the first",
        "stock_svc/reserve.py",
        "if existing.has_lapsed(self.now):",
        "if False:",
    ),
    RemovedGuard(
        "equal keys in a batch",
        "stock_svc/reserve.py",
        "if not keys & seen:",
        "if True:",
        "tests/stock_svc/test_batches.py",
    ),
    RemovedGuard(
        "commit of a lapsed hold",
        "stock_svc/transitions.py",
        "if has_lapsed and order.move in _NEEDS_HOLD:",
        "if False:",
    ),
    RemovedGuard(
        "moves",
        "stock_svc/transitions.py",
        "if target not in MOVES[reservation.state]:",
        "if False:",
    ),
    RemovedGuard(
        "refused moves",
        "stock_svc/transitions.py",
        "if reservation.state in _REFUSED_IN[order.move]:",
        "if False:",
    ),
    RemovedGuard(
        "extended once",
        "stock_svc/transitions.py",
        "if reservation.extended or order.expire_time is None:",
        "if order.expire_time is None:",
    ),
    RemovedGuard(
        "block of a taken seat", "stock_svc/restocking.py", "    if taken:\n", "    if False:\n"
    ),
    RemovedGuard(
        "exchange ends the old one",
        "stock_svc/exchange.py",
        "    await _move(connection, [end], also_lock=pools, now=now)\n",
        "",
    ),
    RemovedGuard(
        "row locks of pools",
        "stock_svc/statements.py",
        "ORDER BY event_id, pool_id FOR NO KEY UPDATE",
        "ORDER BY event_id, pool_id",
        RACES,
    ),
    RemovedGuard(
        "row locks of reservations",
        "stock_svc/statements.py",
        "ORDER BY event_id, reservation_id FOR NO KEY UPDATE",
        "ORDER BY event_id, reservation_id",
        RACES,
    ),
    RemovedGuard(
        "lapsed still, once it is locked",
        "stock_svc/transitions.py",
        "if order.move is Move.EXPIRE and not reservation.has_lapsed(now):",
        "if False:",
        RACES,
    ),
    RemovedGuard(
        "row locks of an exchange",
        "stock_svc/exchange.py",
        ".with_for_update(key_share=True)",
        "",
        RACES,
    ),
    RemovedGuard(
        "first with its key",
        "booking_svc/bookings/batch_writer.py",
        "WHEN booking_id = ANY (ARRAY(SELECT resource_id FROM claimed)) THEN 'INSERTED'",
        "WHEN true THEN 'INSERTED'",
        PLACING,
    ),
    RemovedGuard(
        "revision that a booking was priced by",
        "booking_svc/bookings/batch_writer.py",
        "WHERE given.revision IS NULL OR given.revision = (",
        "WHERE true OR given.revision = (",
        CHANGED_TERMS,
    ),
    RemovedGuard(
        "no refusal because of an event from memory",
        "booking_svc/bookings/placement.py",
        "        return _Unplaced(event)\n    try:\n",
        "        raise\n    try:\n",
        CHANGED_TERMS,
    ),
    RemovedGuard(
        "places of a repeated key whose hold has ended",
        "booking_svc/bookings/placement.py",
        "if reservation is not None and reservation.reservation_id != record.resource_id:",
        "if False:",
        CHANGED_TERMS,
    ),
    RemovedGuard(
        "places of a booking whose key is used by another request",
        "booking_svc/bookings/placement.py",
        "            if not is_booked:\n",
        "            if True:\n",
        CHANGED_TERMS,
    ),
    RemovedGuard(
        "places of a booking that its event refuses",
        "booking_svc/bookings/placement.py",
        "        if reservation is not None:\n            await _release(",
        "        if False:\n            await _release(",
        CHANGED_TERMS,
    ),
    RemovedGuard(
        "state that a transition was decided on",
        "booking_svc/bookings/state_machine.py",
        "    AND bookings.status = given.before_status\n",
        "",
        PLACING,
    ),
    RemovedGuard(
        "payment that a transition was decided on",
        "booking_svc/bookings/state_machine.py",
        "    AND bookings.payment_id IS NOT DISTINCT FROM given.before_payment_id\n",
        "",
        PLACING,
    ),
    RemovedGuard(
        "payment status that a transition was decided on",
        "booking_svc/bookings/state_machine.py",
        "    AND bookings.payment_status IS NOT DISTINCT FROM given.before_payment_status\n",
        "",
        PLACING,
    ),
    RemovedGuard(
        "the request that each is of",
        "booking_svc/bookings/batch_writer.py",
        "new = NewBooking(key, booking, by, response, is_mail_wanted, origin, revision)",
        'new = NewBooking(key, booking, by, response, is_mail_wanted, "", revision)',
        PLACING,
    ),
    RemovedGuard(
        "one request for a key",
        "mesh/db/idempotent.py",
        "if fingerprint != key.fingerprint:",
        "if False:",
        "tests/mesh/db/test_idempotent.py",
    ),
    RemovedGuard(
        "moves of a booking",
        "booking_svc/bookings/state_machine.py",
        "if to not in MOVES[booking.status]:",
        "if False:",
        LIFE,
    ),
    RemovedGuard(
        "row lock of a booking",
        "booking_svc/bookings/bookings.py",
        "WHERE booking_id = ANY (%s::uuid[]) ORDER BY booking_id FOR UPDATE\n",
        "WHERE booking_id = ANY (%s::uuid[]) ORDER BY booking_id\n",
        LIFE,
    ),
    RemovedGuard(
        "no more back than was paid",
        "payment_svc/captures.py",
        ".where(refundable_minor(captures.c) >= amount.amount_minor)\n",
        "\n",
        "tests/payment_svc/test_refunds.py",
    ),
    RemovedGuard(
        "moves of a payment",
        "payment_svc/payments.py",
        "            .where(payments.c.status.in_(_before(to)))\n",
        "",
        "tests/payment_svc/test_payments.py",
    ),
    RemovedGuard(
        "row lock of a payment",
        "payment_svc/payments.py",
        ".with_for_update(key_share=True)",
        "",
        "tests/payment_svc/test_payment_reports.py",
    ),
    RemovedGuard(
        "kept places",
        "stock_svc/allocation.py",
        "return min(free, open_places + replaced)",
        "return free",
        KEPT,
    ),
    RemovedGuard(
        "open places that are sold",
        "stock_svc/statements.py",
        "pools.open_places - input.opened,",
        "pools.open_places,",
        KEPT,
    ),
    RemovedGuard(
        "one version of kept pools after the other",
        "stock_svc/waiting_list.py",
        "events.c.waiting_list_version < version",
        "sa.true()",
        KEPT,
    ),
    RemovedGuard(
        "places of a pool that an exchange gives up",
        "stock_svc/exchange.py",
        "replaced_places=await _places_of(connection, old)",
        "replaced_places=()",
        KEPT,
    ),
    RemovedGuard(
        "order of a waiting list",
        "booking_svc/queueing/waiting_list_plan.py",
        "own = needed.keys() - self._blocked",
        "own = needed.keys()",
        "tests/booking_svc/queueing/test_waiting_list_plan.py",
    ),
    RemovedGuard(
        "a pool gathers for a time, whoever is in front",
        "booking_svc/queueing/waiting_list_plan.py",
        "since = self._gathering.setdefault(pool_id, self._now)",
        "self._gathering[pool_id] = since = self._now",
        WAITING_LIST,
    ),
    RemovedGuard(
        "end of an offer",
        "booking_svc/queueing/waiting_list_claim.py",
        "if entry.offer_expire_time is None or entry.offer_expire_time <= now:",
        "if entry.offer_expire_time is None:",
        WAITING_LIST,
    ),
    RemovedGuard(
        "holds of ended offers",
        "booking_svc/queueing/waiting_list.py",
        "is_release_due=entry.state is not State.WAITING,",
        "is_release_due=False,",
        WAITING_LIST,
    ),
    RemovedGuard(
        "no answer before the ledger keeps the pools",
        "booking_svc/queueing/waiting_list.py",
        "await gate.sync(deps.database, deps.stock, event_id=event_id)",
        "pass",
        WAITING_LIST,
    ),
    RemovedGuard(
        "places that a dead process has chosen",
        "booking_svc/queueing/waiting_list_offers.py",
        "    for entry in chosen:\n        if await _reserve(deps, entry) in _LASTING:\n",
        "    for entry in ():\n        if await _reserve(deps, entry) in _LASTING:\n",
        "tests/booking_svc/queueing/test_waiting_list_crashes.py",
    ),
    RemovedGuard(
        "one process moves a cursor",
        "mesh/db/consumer.py",
        "if moved.rowcount != 1:",
        "if False:",
        "tests/mesh/db/test_consumer.py",
    ),
]


def without(guard: RemovedGuard, folder: Path) -> Path:
    """A copy of the project that lacks the guard."""
    copy = folder / "boxoffice"
    shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
    file = copy / guard.file
    file.write_text(file.read_text().replace(guard.text, guard.without))
    return copy


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "-"))
def test_the_guards_are_where_this_file_says(guard: RemovedGuard) -> None:
    assert (ROOT / guard.file).read_text().count(guard.text) == 1


@pytest.mark.timeout(7200)
def test_the_tests_notice_that_a_guard_is_gone(tmp_path: Path, is_long: bool) -> None:
    unnoticed = []
    one_each = {Path(guard.file).parts[0]: guard for guard in reversed(GUARDS)}.values()
    for number, guard in enumerate(GUARDS if is_long else one_each):
        if not is_noticed(guard, tmp_path / str(number)):
            unnoticed.append(guard.name)
    assert unnoticed == []


def is_noticed(guard: RemovedGuard, folder: Path) -> bool:
    # Not shrunk to the smallest example: that it fails is enough.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--hypothesis-profile=unshrunk",
         "-p", "no:cacheprovider", guard.noticed_by],
        cwd=without(guard, folder),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    last = run.stdout.strip().splitlines()[-1]
    print(f"without {guard.name}: {last}", flush=True)
    # A test, not its collection: that has errors only. What failed may leave more behind.
    return run.returncode == pytest.ExitCode.TESTS_FAILED and " failed" in last
