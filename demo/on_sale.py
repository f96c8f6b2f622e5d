"""`--on-sale`: a limited event with a waiting room, thousands of visitors, and bots; then its report."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from rich.console import Console

from chaos.checks.audit import Finding
from chaos.checks.evidence import Investigator
from chaos.checks.final_audit import audit_when_settled
from chaos.client import Api, Json
from chaos.workload import catalogue
from chaos.workload.journal import Journal
from demo.display import Display, ReadProgress
from demo.report import percentile
from demo.target import DemoSettings, Target, open_own_target
from demo.visitors import PROOF_BITS, Bots, Sale, Visitor
from tools import rest
from tools.boxoffice import draw, on_sale_page, on_sale_report
from tools.reporting.page import Section

VISITORS = 5000

# 5,000 come within about two minutes, which two slow cores can carry with the calls that follow.
_ARRIVALS_PER_SECOND = 40
_LEAST_ARRIVAL_SECONDS = 15.0
_PER_MINUTE = 600
_PLACES_SHARE = 0.1
_LEAST_PLACES = 20
_SESSION_SECONDS = 90
_PRICE_MINOR = 450_000
# Low enough that bots of one address reach the limits; each visitor has an address.
_RATE_LIMIT_SCALE = 2.0
_SETTLING_SECONDS = 120.0
_VARIABLES = {"BOXOFFICE_WAITING_LIST_GATHER_SECONDS": "5"}


async def run(
    console: Console, settings: DemoSettings, *, visitors: int, seed: int, folder: Path | None
) -> bool:
    """Runs the on-sale in a mesh of its own. Returns whether the audit and the report are clean."""
    screen = Display(console)
    folder = folder or settings.home.absolute() / "on-sale-report"
    journal = Journal(visitors)
    async with (
        open_own_target(
            settings,
            say=screen.say,
            variables=_VARIABLES,
            rate_limit_scale=_RATE_LIMIT_SCALE,
            trusted_proxies=("127.0.0.1/32", "::1/128"),
        ) as target,
        Api(target.url) as api,
    ):
        token = await catalogue.sign_in_admin(api, target.admin_secret)
        arrival_seconds = max(_LEAST_ARRIVAL_SECONDS, visitors / _ARRIVALS_PER_SECOND)
        sale, commitment = await _announce(api, token, visitors, arrival_seconds)
        screen.say(
            f"{visitors:,} visitors and bots for {_places(visitors):,} places, --seed {seed}. The"
            f" sale starts in {arrival_seconds:.0f} s. Commitment of the draw: {commitment}"
        )
        investigator = Investigator(api, token, [sale.event_id])
        await investigator.start()
        with screen.showing("On sale", visitors, _progress(journal, sale)):
            await _sell(api, sale, journal, visitors, seed, arrival_seconds)
        screen.say("All visitors are done. Waiting for holds to end, then auditing.")
        _, findings = await audit_when_settled(
            investigator, journal.orders, seconds=_SETTLING_SECONDS
        )
        created = await asyncio.to_thread(_created, target, token, sale, commitment)
        files = on_sale_page.write(created, folder, sections=_sections(sale, journal, api))
        misplaced = _misplaced(created, sale)
    return _show(console, created, findings, journal, sale, misplaced, files)


def _created(target: Target, token: str, sale: Sale, commitment: str) -> Json:
    with rest.Api(target.url, token) as staff:
        return on_sale_report.create(staff, sale.event_id, commitment=commitment)


def _places(visitors: int) -> int:
    return max(_LEAST_PLACES, round(visitors * _PLACES_SHARE))


async def _announce(
    api: Api, token: str, visitors: int, arrival_seconds: float
) -> tuple[Sale, str]:
    """An event with a waiting room that is open. Returns it and the draw's commitment."""
    now = datetime.now(UTC)
    price = {"amountMinor": str(_PRICE_MINOR), "currencyCode": "INR"}
    places = _places(visitors)
    body: dict[str, Any] = {
        "name": "Monsoon Nights",
        "timeZone": "Asia/Kolkata",
        "startTime": (now + timedelta(days=60)).isoformat(),
        "saleStartTime": (now + timedelta(hours=1)).isoformat(),
        "offers": [
            {"name": "Floor", "price": price, "capacity": places - places // 4},
            {"name": "Balcony", "price": price, "capacity": places // 4},
        ],
    }
    event = await api.call("POST", "/api/v1/events", body=body, token=token, key=uuid4().hex)
    path = f"/api/v1/events/{event['eventId']}"
    room = {
        "opensBeforeSaleSeconds": 7200,
        "admission": {"perMinute": _PER_MINUTE},
        "sessionSeconds": _SESSION_SECONDS,
        "proofOfWorkBits": PROOF_BITS,
    }
    await api.call("PUT", f"{path}/waiting-room", body=room, token=token)
    published = await api.call("GET", f"{path}/draw")
    # Only now: on a slow machine the calls above could take until then.
    start = datetime.now(UTC) + timedelta(seconds=arrival_seconds)
    await api.call("PATCH", path, body={"saleStartTime": start.isoformat()}, token=token)
    offer_ids = tuple(offer["offerId"] for offer in event["offers"])
    return Sale(event["eventId"], offer_ids, uuid4().hex[:8]), str(published["commitment"])


async def _sell(
    api: Api, sale: Sale, journal: Journal, visitors: int, seed: int, arrival_seconds: float
) -> None:
    arrivals = random.Random(seed)
    bots = Bots(sale, api, journal, visitors=visitors, seed=seed)
    async with asyncio.TaskGroup() as group:
        for number in range(visitors):
            visitor = Visitor(sale, api, journal, number=number + 1, seed=seed)
            # More and more until the start of the sale, and a few later.
            after = arrival_seconds * 1.05 * arrivals.betavariate(2, 1.2)
            group.create_task(visitor.run(after))
        group.create_task(bots.before_the_sale())
        group.create_task(bots.during_the_sale())


def _progress(journal: Journal, sale: Sale) -> ReadProgress:
    def read() -> tuple[int, str]:
        parts = [
            f"{sale.joined:,} joined",
            f"{sale.admitted:,} admitted",
            f"{len(journal.placed_at):,} booked",
            f"{journal.confirmed:,} confirmed",
            f"{sale.listed:,} on the waiting list",
            f"{sum(sale.refused_bots.values()):,} attempts of bots refused",
        ]
        return journal.done, ", ".join(parts)

    return read


def _misplaced(created: Json, sale: Sale) -> list[str]:
    """Tickets whose visitors were shown another position than the draw gives them."""
    fairness = created["fairness"]
    secret, participants = bytes.fromhex(fairness["secret"]), fairness["participants"]
    event_id = UUID(sale.event_id)
    expected = {
        number: 1
        + draw.place_of(number, secret=secret, event_id=event_id, participants=participants)
        for number in sale.positions
    }
    return [
        f"ticket number {number} was shown position {shown}, but the draw gives {expected[number]}"
        for number, shown in sale.positions.items()
        if shown != expected[number]
    ]


def _sections(sale: Sale, journal: Journal, api: Api) -> list[Section]:
    """What the demo's clients have seen."""
    attempts = sorted(sale.refused_bots.items(), key=lambda item: (item[0][0], -item[1]))
    refusals = sorted(journal.refusals.items(), key=lambda item: -item[1])
    return [
        Section(
            "Bots of the demo",
            ("Attempt", "Result", "Calls"),
            [(doing, cause, f"{count:,}") for (doing, cause), count in attempts],
            "As their clients saw it. RATE_LIMITED are the limits of their addresses at the gateway.",
        ),
        Section(
            "Visitors of the demo",
            ("", "Count"),
            [
                ("visitors", f"{journal.customers:,}"),
                ("left before their turn", f"{sale.absent:,}"),
                ("admitted", f"{sale.admitted:,}"),
                ("confirmed", f"{journal.confirmed:,}"),
                ("joined the waiting list", f"{sale.listed:,}"),
                ("  with an offer", f"{sale.offered:,}"),
                *((f"refused, {doing}: {reason}", f"{n:,}") for (doing, reason), n in refusals),
            ],
        ),
        Section(
            "Durations as the demo's clients saw them",
            ("Call", "Calls", "p50 ms", "p95 ms", "p99 ms"),
            [
                (
                    call,
                    f"{len(seconds):,}",
                    *(f"{1000 * percentile(seconds, percent):,.0f}" for percent in (50, 95, 99)),
                )
                for call, seconds in sorted(api.tally.seconds.items())
            ],
            "With the gateway, on the machine of the mesh, which all clients share.",
        ),
    ]


def _show(
    console: Console,
    created: Json,
    findings: list[Finding],
    journal: Journal,
    sale: Sale,
    misplaced: list[str],
    files: list[Path],
) -> bool:
    faults = [
        *on_sale_report.problems(created),
        *misplaced,
        *(f"{finding.fault}: {finding.detail} [{', '.join(finding.ids)}]" for finding in findings),
        *journal.violations,
        *(["the ledgers did not settle"] if not created["isSettled"] else []),
    ]
    console.print()
    for title, value in on_sale_page.tiles(created):
        console.print(f"{value:>12}  {title}", highlight=False)
    console.print(f"{len(sale.positions):>12,}  positions checked against the draw")
    console.print(f"{sum(sale.refused_bots.values()):>12,}  attempts of bots refused")
    if journal.unanswered:
        console.print(f"{len(journal.unanswered):>12,}  calls without an answer")
    console.print()
    for is_good, text in on_sale_page.verdicts(created):
        console.print(text, style="green" if is_good else "red", highlight=False, soft_wrap=True)
    if findings:
        console.print(f"Findings of the audit: {len(findings)}", style="red", highlight=False)
    else:
        console.print("Audit clean.", style="bold green")
    for fault in faults[:20]:
        console.print(f"  {fault}", style="red", highlight=False, markup=False, soft_wrap=True)
    console.print()
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)
    if files[-1].suffix != ".png":
        console.print(on_sale_page.NO_PICTURE, highlight=False)
    return not faults
