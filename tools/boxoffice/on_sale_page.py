"""The on-sale report as report.json, report.html and report.png: charts, tables and verdicts."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from html import escape
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

from tools.boxoffice.on_sale_report import Json, problems, refusals_by_kind
from tools.reporting import drawing, page, png, svg
from tools.reporting.drawing import Axis, Drawing, Size, Style
from tools.reporting.page import Section

JSON_FILE, HTML_FILE, PNG_FILE = "report.json", "report.html", "report.png"

NO_PICTURE = "For report.png, install Pillow: python3 launcher/bootstrap.py --bench"

_SIZE = Size(560, 210)
_SHOWN = 20
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
# Units of the time axis, and the longest span for which each is used, in seconds.
_UNITS = (
    (1, "s", 10 * _MINUTE),
    (_MINUTE, "min", 10 * _HOUR),
    (_HOUR, "h", 10 * _DAY),
    (_DAY, "d", math.inf),
)

Point = tuple[float, float]


def write(created: Json, folder: Path, *, sections: Sequence[Section] = ()) -> list[Path]:
    """Writes the files, with more tables if `sections` has some. Returns their paths.

    Without Pillow there is no report.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in (JSON_FILE, HTML_FILE, PNG_FILE)]
    files[0].write_text(json.dumps(created, indent=1, ensure_ascii=False) + "\n")
    files[1].write_text(html(created, sections))
    files[2].unlink(missing_ok=True)
    try:
        _picture(created, files[2])
    except png.PillowMissingError:
        return files[:2]
    return files


def html(created: Json, sections: Sequence[Section] = ()) -> str:
    """The whole page."""
    name = created["report"]["eventName"]
    figures = "".join(
        f"<div class=tile><b>{escape(value)}</b><span>{escape(title)}</span></div>"
        for title, value in tiles(created)
    )
    sentences = "".join(
        f'<p class="verdict {"good" if is_good else "failed"}-verdict">{escape(text)}</p>'
        for is_good, text in verdicts(created)
    )
    charts = "".join(
        f"<div><h3>{escape(title)}</h3>{svg.write(chart)}</div>"
        for title, chart in _charts(created)
    )
    notes = [*problems(created), *([] if created["isSettled"] else created["differences"])]
    listed = "".join(f"<li>{escape(text)}</li>" for text in notes[:_SHOWN])
    return page.write(
        f"On-sale report: {name}",
        [
            f"<h1>{escape(name)}</h1><p class=note>{escape(_subtitle(created))}</p>",
            sentences,
            f"<ul>{listed}</ul>" if listed else "",
            f"<div class=tiles>{figures}</div><div class=charts>{charts}</div>",
            *(page.table(section) for section in (*_sections(created), *sections)),
        ],
    )


def verdicts(created: Json) -> Iterator[tuple[bool, str]]:
    """Whether the ledgers agree, and the draw: good or not, and a sentence."""
    differences, fairness = created["differences"], created["fairness"]
    if not created["isSettled"]:
        steps = created["report"]["openSteps"]
        yield (
            True,
            f"The sale is moving: {len(differences)} differences so far, {steps} open steps."
            " Compare again when it has settled.",
        )
    else:
        yield (
            not differences,
            f"Unexplained differences: {len(differences)} (stock ledger, bookings, payment ledger).",
        )
    if fairness is None:
        return
    if not fairness["isDrawn"]:
        yield True, f"The draw has not taken place; its commitment is {fairness['commitment']}."
        return
    checked = (
        f"{fairness['participants']:,} tickets in the draw,"
        f" {fairness['admissionsChecked']:,} admissions checked"
    )
    yield (
        fairness["isValid"],
        f"Draw verified: {checked}."
        if fairness["isValid"]
        else f"The order is NOT that of the draw: {checked}, {len(fairness['problems'])} problems.",
    )


def _subtitle(created: Json) -> str:
    report = created["report"]
    return (
        f"On-sale report of {_time(report['reportTime']):%d %B %Y, %H:%M:%S} UTC; the sale started"
        f" {_time(report['saleStartTime']):%d %B %Y, %H:%M:%S} UTC"
    )


def tiles(created: Json) -> Iterator[tuple[str, str]]:
    """The figures of the sale: title and value."""
    report = created["report"]
    visitors, sold = report.get("visitors"), _sold(report)
    if visitors:
        yield "visitors", f"{visitors['joined']:,}"
        yield "admitted", f"{visitors['admitted']:,}"
        yield "of claimed admissions bought", _share(visitors["bought"], visitors["claimed"])
    yield "bookings confirmed", f"{report['bookings']['confirmed']:,}"
    yield "of places sold", f"{_share(sold, created['capacity'])} ({sold:,})"
    yield "calls refused", f"{sum(entry['count'] for entry in report['refusals']):,}"
    yield "on the waiting list", f"{report['waitingList']['waiting']:,}"
    yield "unexplained differences", str(len(created["differences"]))


def _charts(created: Json) -> list[tuple[str, Drawing]]:
    report = created["report"]
    timeline = _Timeline(report)
    every = _length(report["intervalSeconds"])

    def during(**fields: str) -> Drawing:
        """A line for each name and field."""
        return _lines(
            timeline,
            {
                name.replace("_", " "): timeline.during(itemgetter(field))
                for name, field in fields.items()
            },
        )

    charts = []
    if "visitors" in report:
        charts += [
            (f"Arrivals in the waiting room, per {every}", during(tickets="joined")),
            (
                f"Admissions, per {every}",
                during(
                    places_admitted="admitted", claimed="claimed", bookings_placed="bookingsPlaced"
                ),
            ),
            ("From the ticket to the sale", drawing.bars(list(_funnel(report)), size=_SIZE)),
        ]
    sold = timeline.by_end("placesSold")
    charts.append(
        (
            "Places sold (dashed: capacity)",
            drawing.lines(
                timeline.axis,
                {"sold": sold},
                limit=created["capacity"],
                styles=(Style.GOOD,),
                size=_SIZE,
            ),
        )
    )
    kinds = sorted(refusals_by_kind(report["refusals"]).items(), key=lambda item: -item[1])
    if kinds:
        counted = [(kind, count, f"{count:,}") for kind, count in kinds]
        charts.append(("Refused calls", drawing.bars(counted, style=Style.SECOND, size=_SIZE)))
    if report["durations"]:
        latencies = {
            entry["call"]: timeline.during(_p95(entry["call"])) for entry in report["durations"]
        }
        charts.append(("95th percentile in the service, ms", _lines(timeline, latencies)))
    listed = {
        "entries so far": timeline.by_end("waitingListJoined"),
        "in line or with an offer": timeline.by_end("waitingListJoined", "waitingListEnded"),
    }
    charts.append(("Waiting list", _lines(timeline, listed)))
    fairness = created["fairness"]
    if fairness and fairness["isDrawn"] and fairness["points"]:
        most = fairness["participants"]
        charts.append(
            (
                "Position in line (up) by order of arrival (right)",
                drawing.dots(
                    Axis(0, most, lambda number: f"{number:,g}"),
                    [(number, place, "") for number, place in fairness["points"]],
                    radius=1.5,
                    highest=most,
                    size=_SIZE,
                ),
            )
        )
    return charts


def _lines(timeline: "_Timeline", series: dict[str, list[Point]]) -> Drawing:
    return drawing.lines(timeline.axis, series, size=_SIZE)


def _funnel(report: Json) -> Iterator[tuple[str, float, str]]:
    visitors = report["visitors"]
    before = 0
    for name, field in (
        ("tickets", "joined"),
        ("admitted", "admitted"),
        ("admission claimed", "claimed"),
        ("placed a booking", "booked"),
        ("bought", "bought"),
    ):
        count = visitors[field]
        share = f"  ({_share(count, before)})" if before else ""
        yield name, count, f"{count:,}{share}"
        before = count


class _Timeline:
    """The intervals of a report, from the start of the sale, in a unit that suits their span."""

    def __init__(self, report: Json) -> None:
        self._intervals = report["intervals"]
        start = _time(report["saleStartTime"])
        seconds = [(_time(entry["startTime"]) - start).total_seconds() for entry in self._intervals]
        length = report["intervalSeconds"]
        span = seconds[-1] + length - seconds[0]
        unit, name = next((unit, name) for unit, name, most in _UNITS if span <= most)
        self._begins = [second / unit for second in seconds]
        self._length = length / unit
        self.axis = Axis(
            self._begins[0],
            self._begins[-1] + self._length,
            lambda value: f"{value:+g} {name}" if value else "sale",
        )

    def during(self, value: Callable[[Json], float | None]) -> list[Point]:
        """A point in the middle of each interval that has a value."""
        middles = [begin + self._length / 2 for begin in self._begins]
        return self._points(middles, map(value, self._intervals))

    def by_end(self, *fields: str) -> list[Point]:
        """The running total of the first field, less that of the others, at each end."""
        first, *others = fields
        totals = accumulate(
            entry[first] - sum(entry[other] for other in others) for entry in self._intervals
        )
        ends = [begin + self._length for begin in self._begins]
        return [(self._begins[0], 0.0), *self._points(ends, totals)]

    @staticmethod
    def _points(times: Sequence[float], values: Iterable[float | None]) -> list[Point]:
        return [
            (time, value) for time, value in zip(times, values, strict=True) if value is not None
        ]


def _p95(call: str) -> Callable[[Json], float | None]:
    def value(interval: Json) -> float | None:
        durations = (entry for entry in interval["durations"] if entry["call"] == call)
        return next((entry["p95Ms"] for entry in durations), None)

    return value


def _sections(created: Json) -> Iterator[Section]:
    report, fairness = created["report"], created["fairness"]
    if report["refusals"]:
        yield Section(
            "Refusals",
            ("Cause", "Calls"),
            [(entry["cause"], f"{entry['count']:,}") for entry in report["refusals"]],
            "Of JoinQueue, of tickets, and of PlaceBooking by admitted customers. What the rate limits"
            " of the gateway refuse is not among them.",
        )
    if report["durations"]:
        yield Section(
            "Durations in the service",
            ("Call", "Calls", "p50 ms", "p95 ms", "p99 ms"),
            [
                (
                    entry["call"],
                    f"{int(entry['count']):,}",
                    *(f"{entry[name]:,.1f}" for name in ("p50Ms", "p95Ms", "p99Ms")),
                )
                for entry in report["durations"]
            ],
            "Without the gateway and the network. Percentiles are upper bounds of histogram buckets,"
            " at most 42 % too high.",
        )
    bookings, listed, money = report["bookings"], report["waitingList"], report["money"]
    yield Section(
        "Bookings and waiting list",
        ("", "Bookings", "", "Entries of the waiting list"),
        [
            (name, f"{bookings[name]:,}", other, f"{listed[other]:,}")
            for name, other in zip(
                ("placed", "confirmed", "open", "expired", "failed", "cancelled"),
                ("joined", "waiting", "offered", "claimed", "expired", "left"),
                strict=True,
            )
        ],
    )
    yield Section(
        "Places and money",
        ("", "Sold", "Held"),
        [
            *(
                (" and ".join(pool["offerNames"]), f"{pool['sold']:,}", f"{pool['held']:,}")
                for pool in report["pools"]
            ),
            *(
                (f"{name}, {money['currencyCode']} minor units", f"{int(money[field]):,}", "")
                for name, field in (
                    ("price of confirmed bookings", "confirmedMinor"),
                    ("captured", "capturedMinor"),
                    ("refunded", "refundedMinor"),
                )
            ),
        ],
        f"{money['rescheduled']} bookings were rescheduled from or to another event: payments keep"
        " the event that they were made for, so money is not compared."
        if money["rescheduled"]
        else "",
    )
    if fairness and fairness["isDrawn"]:
        yield _fairness(fairness)


def _fairness(fairness: Json) -> Section:
    rows = [
        ("algorithm", fairness["algorithm"]),
        ("commitment, published before the room opened", fairness["commitment"]),
        ("secret, revealed at the draw", fairness["secret"]),
        ("participants", f"{fairness['participants']:,}"),
        ("admissions at the place of the draw", f"{fairness['admissionsChecked']:,}"),
    ]
    evenness = fairness["evenness"]
    if evenness:
        rows.append(
            (
                f"chi-square of arrival against position, {evenness['bins']} × {evenness['bins']}",
                f"{evenness['chiSquare']} with {evenness['degreesOfFreedom']} degrees of freedom,"
                f" p = {evenness['pValue']}",
            )
        )
    return Section(
        "Fairness",
        ("", ""),
        rows,
        "Verify it yourself: ./boxoffice verify-draw (docs/queueing.md has the algorithm). A p-value"
        " below 0.001 occurs in one of 1,000 fair draws. "
        + (
            ""
            if fairness["isCommitmentNoted"]
            else "The commitment was not compared with one noted before the draw (--commitment)."
        ),
    )


def _picture(created: Json, file: Path) -> None:
    figures = [f"{value} {title}" for title, value in tiles(created)]
    half = -(-len(figures) // 2)
    png.write(
        file,
        title=created["report"]["eventName"],
        lines=[
            (_subtitle(created), None),
            *(
                (text, Style.GOOD if is_good else Style.SECOND)
                for is_good, text in verdicts(created)
            ),
            (",  ".join(figures[:half]), None),
            (",  ".join(figures[half:]), None),
        ],
        charts=_charts(created),
    )


def _sold(report: Json) -> int:
    return sum(pool["sold"] for pool in report["pools"])


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _length(seconds: int) -> str:
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds % unit == 0:
            return name if seconds == unit else f"{seconds // unit} {name}s"
    return f"{seconds} seconds"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
