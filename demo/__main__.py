"""`python -m demo`. Exit codes: 0 for a clean audit, 1 for findings, 2 when the demo could not run."""

import argparse
import asyncio
import random
import signal
import sys
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from chaos.checks.audit import Finding
from chaos.checks.evidence import SOLD, Evidence, Investigator
from chaos.checks.final_audit import WAIT_SECONDS, audit_when_settled
from chaos.client import Api, RefusedError, UnansweredError
from chaos.workload import catalogue, customers
from chaos.workload.journal import Journal
from demo import display, kills, on_sale, report
from demo.display import Display
from demo.errors import DemoError
from demo.kills import ALL_IN_TURN, Kills
from demo.target import DemoSettings, Target, open_target
from launcher.errors import LaunchError
from launcher.settings_listing import load

CLEAN, FOUND, NOT_RUN, INTERRUPTED = 0, 1, 2, 130

_CUSTOMERS = 300
_MOST_CUSTOMERS = 5000
_LINE_WIDTH = 120


def main() -> int:
    """Runs the demo and returns the exit code."""
    arguments = _parser().parse_args()
    try:
        return asyncio.run(_run(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except (DemoError, LaunchError) as error:
        problem = str(error)
    except (RefusedError, UnansweredError) as error:
        problem = f"The mesh refused a call that the demo needs. {error}"
    except (KeyError, TypeError, ValueError) as error:
        problem = f"The mesh sent an answer that violates the contract: {error!r}"
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(problem, style="red")
    return NOT_RUN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Sells a stadium and a cinema to many concurrent customers, and audits the sale.",
    )
    parser.add_argument(
        "--customers",
        type=_customers,
        metavar="N",
        help=f"default: {_CUSTOMERS}, with --on-sale {on_sale.VISITORS}",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="repeats the random choices of another run"
    )
    parser.add_argument(
        "--kill",
        default="",
        metavar="NAME[,NAME…]",
        help=f"services to kill -9 during the sale, one after the other, or {ALL_IN_TURN}; also redis,"
        " redis-frozen, redis-flushed",
    )
    parser.add_argument(
        "--on-sale",
        action="store_true",
        help="a limited event with a waiting room, visitors and bots, and its on-sale report",
    )
    parser.add_argument(
        "--folder", type=Path, help="of the on-sale report; default: in the state folder"
    )
    parser.add_argument("--url", default="", help="gateway of a running mesh")
    return parser


def _customers(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MOST_CUSTOMERS:
        raise argparse.ArgumentTypeError(f"must be 1–{_MOST_CUSTOMERS}, not {number}")
    return number


async def _run(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    if task is not None:
        # SIGTERM must also stop the processes of the demo's mesh.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console = Console(width=None if sys.stdout.isatty() else _LINE_WIDTH)
    screen = Display(console)
    victims = kills.parse(arguments.kill)
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    if arguments.on_sale:
        if victims or arguments.url:
            raise DemoError("--on-sale starts a mesh of its own: it takes no --url and no --kill.")
        is_clean = await on_sale.run(
            console,
            load(DemoSettings),
            visitors=arguments.customers or on_sale.VISITORS,
            seed=seed,
            folder=arguments.folder,
        )
        return CLEAN if is_clean else FOUND
    customers_wanted = arguments.customers or _CUSTOMERS
    async with open_target(
        load(DemoSettings), url=arguments.url, customers=customers_wanted, say=screen.say
    ) as target:
        faults = Kills(victims, home=target.home, url=target.url)
        faults.check()
        journal = Journal(customers_wanted)
        async with Api(target.url) as api:
            evidence, findings = await _sell(target, api, journal, faults, screen, seed)
        report.show(
            console,
            evidence=evidence,
            findings=findings,
            journal=journal,
            tally=api.tally,
            kills=faults.outages,
        )
    return _verdict(evidence, findings, faults)


async def _sell(
    target: Target, api: Api, journal: Journal, faults: Kills, screen: Display, seed: int
) -> tuple[Evidence, list[Finding]]:
    token = await catalogue.sign_in_admin(api, target.admin_secret)
    shows = [
        await catalogue.put_on_sale(api, token, name)
        for name in (catalogue.STADIUM, catalogue.CINEMA)
    ]
    for show in shows:
        screen.say(f"On sale: {show.name}, {show.venue_name}, {show.total_capacity:,} places.")
    investigator = Investigator(api, token, [show.event_id for show in shows])
    await investigator.start()
    screen.say(f"{journal.customers} customers, --seed {seed}.")
    with screen.showing("Selling", journal.customers, display.sale(journal, api.tally, faults)):
        async with asyncio.TaskGroup() as group:
            group.create_task(faults.run())
            group.create_task(
                customers.sell(
                    shows,
                    api=api,
                    journal=journal,
                    seed=seed,
                    run=uuid4().hex[:8],
                    arrival_seconds=max(customers.ARRIVAL_SECONDS, faults.seconds),
                )
            )
    state = "reading"
    screen.say(
        "All customers are done. Waiting for holds to end and refunds to be processed, "
        f"at most {WAIT_SECONDS:g} s."
    )

    def on_audit(still_open: int, findings: int) -> None:
        nonlocal state
        state = f"unpaid bookings still held: {still_open}, findings so far: {findings}"

    with screen.showing("Auditing", None, lambda: (0, state)):
        return await audit_when_settled(investigator, journal.orders, on_audit=on_audit)


def _verdict(evidence: Evidence, findings: list[Finding], faults: Kills) -> int:
    if findings or any(outage.away_seconds is None for outage in faults.outages):
        return FOUND
    if not any(booking.status in SOLD for booking in evidence.bookings):
        raise DemoError("Nothing was sold, so the clean audit proves nothing. See the refusals.")
    return CLEAN


if __name__ == "__main__":
    sys.exit(main())
