"""Each guard of the ledger is needed: without it, the tests of the ledger fail.

A guard is taken out of a copy of the project, one at a time. The short version takes out
one and sees that the texts of all others are still where this file says; `--long` takes out
each.
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
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".boxoffice", "__pycache__", ".*_cache")


@dataclass(frozen=True, slots=True)
class Guard:
    """Where a guard stands in stock_svc, what the file says without it, and who must notice."""

    name: str
    file: str
    text: str
    without: str
    noticed_by: str = MACHINE


GUARDS = [
    Guard("places left", "granting.py", "if one.by_pool[pool] > free[pool]:", "if False:"),
    Guard("seats taken", "granting.py", "if seat in locked.taken]", "if False]"),
    Guard("purchase limit", "granting.py", "if owned + quantity > limit:", "if False:"),
    Guard(
        "purchase limit of the event",
        "granting.py",
        "if limit is None or owned + one.places <= limit:",
        "if True:",
    ),
    Guard("places a batch took before", "granting.py", "locked.free[pool] -= quantity", "pass"),
    Guard("seats a batch took before", "granting.py", "locked.taken |= set(one.seats)", "pass"),
    Guard(
        "places left, in the statement",
        "statements.py",
        "  AND pools.held + given.held + pools.sold + given.sold"
        " <= pools.capacity + given.capacity\n",
        "",
        RACES,
    ),
    Guard("blocked seats", "statements.py", "seats.blocked OR EXISTS (", "EXISTS ("),
    Guard(
        "totals given back",
        "statements.py",
        "SET quantity = totals.quantity - given.quantity",
        "SET quantity = totals.quantity",
    ),
    Guard("lapsed holds cleared", "reserving.py", "        if lapsed:\n", "        if False:\n"),
    Guard(
        "one reservation for a key",
        "reserving.py",
        "        if first.has_lapsed(self.now):\n            return False\n",
        "        return False\n",
    ),
    Guard(
        "a lapsed one is not the first",
        "reserving.py",
        "if first.has_lapsed(self.now):",
        "if False:",
    ),
    Guard(
        "equal keys in a batch",
        "reserving.py",
        "if not keys & seen:",
        "if True:",
        "tests/stock_svc/test_batches.py",
    ),
    Guard(
        "commit of a lapsed hold",
        "moving.py",
        "if has_lapsed and order.move in _NEEDS_HOLD:",
        "if False:",
    ),
    Guard("moves", "moving.py", "if target not in MOVES[found.state]:", "if False:"),
    Guard("refused moves", "moving.py", "if found.state in _REFUSED_IN[order.move]:", "if False:"),
    Guard(
        "extended once",
        "moving.py",
        "if found.extended or order.expire_time is None:",
        "if order.expire_time is None:",
    ),
    Guard("block of a taken seat", "restocking.py", "    if taken:\n", "    if False:\n"),
    Guard(
        "exchange ends the old one",
        "exchange.py",
        "    await ledger.lock(connection, pools)\n    await _end(connection, old, freed, now=now)\n",
        "    await ledger.lock(connection, pools)\n",
    ),
    Guard(
        "row locks of pools",
        "statements.py",
        "ORDER BY event_id, pool_id FOR NO KEY UPDATE",
        "ORDER BY event_id, pool_id",
        RACES,
    ),
    Guard(
        "row locks of reservations",
        "statements.py",
        "ORDER BY event_id, reservation_id FOR NO KEY UPDATE",
        "ORDER BY event_id, reservation_id",
        RACES,
    ),
    Guard(
        "lapsed still, once it is locked",
        "expiry.py",
        ".where(is_active, reservations.c.expire_time <= now)\n        .values(",
        ".values(",
        RACES,
    ),
    Guard("row locks of an exchange", "exchange.py", ".with_for_update(key_share=True)", "", RACES),
]


def without(guard: Guard, folder: Path) -> Path:
    """A copy of the project that lacks the guard."""
    copy = folder / "boxoffice"
    shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
    file = copy / "stock_svc" / guard.file
    file.write_text(file.read_text().replace(guard.text, guard.without))
    return copy


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "-"))
def test_the_guards_are_where_this_file_says(guard: Guard) -> None:
    assert (ROOT / "stock_svc" / guard.file).read_text().count(guard.text) == 1


@pytest.mark.timeout(7200)
def test_the_tests_notice_that_a_guard_is_gone(tmp_path: Path, is_long: bool) -> None:
    unnoticed = []
    for number, guard in enumerate(GUARDS if is_long else GUARDS[:1]):
        if not is_noticed(guard, tmp_path / str(number)):
            unnoticed.append(guard.name)
    assert unnoticed == []


def is_noticed(guard: Guard, folder: Path) -> bool:
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
    return run.returncode == pytest.ExitCode.TESTS_FAILED and "error" not in last
