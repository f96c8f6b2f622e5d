"""The on-sale report from a fixed sale: what is compared, the draw, and what the files show."""

import hashlib
import json
import re
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from mesh.paths import BENCH_PACKAGES
from tools.boxoffice import on_sale_page, on_sale_report
from tools.boxoffice.draw import ALGORITHM, place_of
from tools.reporting import drawing, svg
from tools.rest import Api, RefusedError

EVENT_ID = "0197f000-0000-7000-8000-000000000006"
POOL_ID = "0197f000-0000-7000-8000-000000000008"
SECRET = bytes(range(32))
PARTICIPANTS, ADMITTED, CAPACITY = 1_000, 150, 200
START = datetime(2030, 6, 1, 10, tzinfo=UTC)


def place(number: int) -> int:
    return place_of(number, secret=SECRET, event_id=UUID(EVENT_ID), participants=PARTICIPANTS)


def an_interval(seconds: int, **counts: int) -> dict[str, Any]:
    names = (
        *("joined", "admitted", "claimed", "bookingsPlaced", "bookingsConfirmed", "placesSold"),
        *("waitingListJoined", "waitingListEnded"),
    )
    durations = [{"call": "PlaceBooking", "count": "3", "p50Ms": 8, "p95Ms": 16, "p99Ms": 16}]
    return {
        "startTime": (START + timedelta(seconds=seconds)).isoformat(),
        **dict.fromkeys(names, 0),
        **counts,
        "durations": durations if counts.get("bookingsPlaced") else [],
    }


def a_report() -> dict[str, Any]:
    """A sale of 200 places to 1,000 visitors, sold out after 90 seconds."""
    before = [an_interval(10 * number - 60, joined=170) for number in range(6)]
    after = [
        an_interval(
            10 * number,
            admitted=25,
            claimed=20,
            bookingsPlaced=17,
            bookingsConfirmed=15,
            placesSold=min(24, CAPACITY - 24 * number),
            waitingListJoined=4 if number > 6 else 0,
            waitingListEnded=1 if number > 7 else 0,
        )
        for number in range(9)
    ]
    numbers = sorted(range(PARTICIPANTS), key=place)[:ADMITTED]
    return {
        "eventId": EVENT_ID,
        "eventName": "Monsoon <Nights>",
        "reportTime": (START + timedelta(minutes=3)).isoformat(),
        "saleStartTime": START.isoformat(),
        "intervalSeconds": 10,
        "intervals": [*before, *after],
        "visitors": {
            "joined": 1_020,
            "participants": PARTICIPANTS,
            "admitted": 225,
            "claimed": ADMITTED,
            "booked": 130,
            "bought": 120,
        },
        "refusals": [
            {"cause": "PROOF_MISSING", "count": 400},
            {"cause": "TICKET_FORGED", "count": 90},
            {"cause": "SOLD_OUT", "count": 12},
            {"cause": "PROOF_REUSED", "count": 5},
        ],
        "durations": [
            {"call": "JoinQueue", "count": "1020", "p50Ms": 4, "p95Ms": 16, "p99Ms": 32},
            {"call": "PlaceBooking", "count": "153", "p50Ms": 8, "p95Ms": 16, "p99Ms": 32},
        ],
        "bookings": {
            "placed": 153,
            "confirmed": 135,
            "open": 0,
            "expired": 18,
            "failed": 0,
            "cancelled": 0,
        },
        "pools": [{"poolId": POOL_ID, "offerNames": ["Floor", "Guest"], "sold": 200, "held": 0}],
        "money": {
            "currencyCode": "INR",
            "confirmedMinor": "20000",
            "capturedMinor": "20100",
            "refundedMinor": "100",
            "rescheduled": 0,
        },
        "waitingList": {
            "joined": 8,
            "waiting": 7,
            "offered": 0,
            "claimed": 1,
            "expired": 0,
            "left": 0,
        },
        "admissions": [{"number": number, "place": place(number)} for number in numbers],
        "openSteps": 0,
    }


class StaffApi:
    """Answers as the gateway does to staff. A test changes `report`, `audit`, `rows` or `draw`."""

    def __init__(self) -> None:
        self.report = a_report()
        self.audit: dict[str, Any] = {
            "pools": [{"poolId": POOL_ID, "capacity": CAPACITY, "held": 0, "sold": 200}],
            "differences": [],
        }
        self.rows = [
            {
                "currencyCode": "INR",
                "capturedMinor": "20100",
                "refundedMinor": "100",
                "suspenseMinor": "0",
            }
        ]
        self.draw: dict[str, Any] = {
            "eventId": EVENT_ID,
            "algorithm": ALGORITHM,
            "commitment": hashlib.sha256(SECRET).hexdigest(),
            "secret": SECRET.hex(),
            "participants": PARTICIPANTS,
            "drawTime": START.isoformat(),
        }
        self.bookings_at_each_look: list[int] = []

    def get(self, path: str) -> dict[str, Any]:
        if path.endswith("/draw"):
            return self.draw
        if path.endswith("/stock/audit"):
            return self.audit
        assert path == f"/api/v1/events/{EVENT_ID}/on-sale-report"
        report = deepcopy(self.report)
        if self.bookings_at_each_look:
            report["bookings"]["placed"] = self.bookings_at_each_look.pop(0)
        return report

    def all(self, path: str, field: str, **query: str) -> Any:
        assert (path, field, query) == ("/api/v1/book-rows", "rows", {"eventId": EVENT_ID})
        return iter(self.rows)


def created(staff: StaffApi, **options: Any) -> dict[str, Any]:
    return on_sale_report.create(cast(Api, staff), EVENT_ID, **options)


def test_a_sale_in_which_all_agrees() -> None:
    result = created(StaffApi(), commitment=hashlib.sha256(SECRET).hexdigest())
    assert (result["isSettled"], result["differences"]) == (True, [])
    fairness = result["fairness"]
    assert (fairness["isValid"], fairness["admissionsChecked"]) == (True, ADMITTED)
    assert fairness["isCommitmentNoted"]
    assert fairness["evenness"]["degreesOfFreedom"] == 81
    assert 0.001 < fairness["evenness"]["pValue"] < 0.999
    assert on_sale_report.problems(result) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda staff: staff.audit["pools"][0].update(sold=199),
            "Floor and Guest: 199 places sold in the stock ledger, 200 in confirmed bookings",
        ),
        (
            lambda staff: staff.audit["pools"][0].update(held=1),
            "Floor and Guest: 200 places sold and 1 held of 200",
        ),
        (
            lambda staff: staff.audit["differences"].append("held 3, by movements 2"),
            "stock ledger: held 3, by movements 2",
        ),
        (
            lambda staff: staff.rows[0].update(capturedMinor="20000"),
            "captured: 20000 minor units of INR in the payment ledger, 20100 in the bookings",
        ),
        (
            lambda staff: staff.rows[0].update(suspenseMinor="700"),
            "700 minor units captured wrongly and not refunded yet",
        ),
    ],
)
def test_each_difference_is_found(change: Any, expected: str) -> None:
    staff = StaffApi()
    change(staff)
    result = created(staff)
    assert result["differences"] == [expected]
    assert on_sale_report.problems(result) == [expected]
    assert expected in on_sale_page.html(result)


def test_rescheduled_bookings_keep_the_event_of_their_payment() -> None:
    staff = StaffApi()
    staff.report["money"]["rescheduled"] = 2
    staff.rows[0]["capturedMinor"] = "1"
    assert created(staff)["differences"] == []


def test_differences_of_a_running_sale_are_not_unexplained() -> None:
    """While sagas run, or bookings change between the looks at the ledgers."""
    staff = StaffApi()
    staff.audit["pools"][0]["sold"] = 190
    staff.report["openSteps"] = 4
    result = created(staff)
    assert not result["isSettled"]
    assert len(result["differences"]) == 1
    assert on_sale_report.problems(result) == []
    assert "The sale is moving: 1 differences so far, 4 open steps." in on_sale_page.html(result)

    staff = StaffApi()
    staff.bookings_at_each_look = [1, 2, 3, 3]
    assert created(staff)["isSettled"]
    assert staff.bookings_at_each_look == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda staff: staff.draw.update(secret=bytes(32).hex()),
            "the secret does not match the commitment",
        ),
        (
            lambda staff: staff.report["admissions"][3].update(place=900),
            "was admitted at place 900, but the draw gives it 3",
        ),
    ],
)
def test_an_order_that_is_not_of_the_draw(change: Any, expected: str) -> None:
    staff = StaffApi()
    change(staff)
    result = created(staff)
    assert expected in on_sale_report.problems(result)[0]
    assert not result["fairness"]["isValid"]
    assert "The order is NOT that of the draw" in on_sale_page.html(result)


def test_another_commitment_than_the_one_noted() -> None:
    result = created(StaffApi(), commitment="00" * 32)
    assert "not the one noted before" in on_sale_report.problems(result)[0]


def test_before_the_draw_and_without_a_room(tmp_path: Path) -> None:
    staff = StaffApi()
    del staff.draw["secret"]
    result = created(staff)
    assert result["fairness"]["isDrawn"] is False
    assert "The draw has not taken place" in on_sale_page.html(result)
    del staff.report["visitors"]
    staff.report["refusals"] = staff.report["durations"] = []
    result = created(staff)
    assert result["fairness"] is None
    assert "draw" not in on_sale_page.html(result)
    assert len(on_sale_page.write(result, tmp_path)) >= 2


def test_an_order_by_arrival_is_not_even() -> None:
    pairs = [(number, number) for number in range(1_000)]
    result = on_sale_report.evenness(pairs, 1_000)
    assert result is not None
    assert result["pValue"] < 0.001
    assert on_sale_report.evenness(pairs[:10], 10) is None


def test_the_tail_of_the_distribution() -> None:
    """Against tables: 5 % at 103.01 for 81 degrees of freedom, 1 % at 16.81 for 6."""
    assert on_sale_report._upper_tail(103.01, 81) == pytest.approx(0.05, abs=0.001)
    assert on_sale_report._upper_tail(16.81, 6) == pytest.approx(0.01, abs=0.001)


def test_the_page(tmp_path: Path) -> None:
    files = on_sale_page.write(created(StaffApi()), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|src=|href=|https?://", page)
    assert "Monsoon &lt;Nights&gt;" in page
    assert page.count("<svg") == 8
    for text in (
        "Arrivals in the waiting room, per 10 seconds",
        "Unexplained differences: 0",
        "Draw verified: 1,000 tickets in the draw, 150 admissions checked.",
        "proof of work: 405",
        "forged or foreign ticket: 90",
        "bought: 120  (92%)",
        "<td>PROOF_REUSED</td><td>5</td>",
        SECRET.hex(),
        "prefers-color-scheme: dark",
    ):
        assert text in page, text
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["report"]["visitors"]["joined"] == 1_020
    assert [file.name for file in files[:2]] == ["report.json", "report.html"]


def test_the_picture(tmp_path: Path) -> None:
    """Needs Pillow; without it the other files are written."""
    files = on_sale_page.write(created(StaffApi()), tmp_path)
    picture = tmp_path / "report.png"
    if not (BENCH_PACKAGES / "PIL").exists():
        assert len(files) == 2
        return
    assert picture in files
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("length", [10, 300, 21_600, 86_400 * 9])
def test_any_length_of_intervals_has_charts(length: int) -> None:
    staff = StaffApi()
    staff.report["intervalSeconds"] = length
    for number, interval in enumerate(staff.report["intervals"]):
        moved = START + timedelta(seconds=length * (number - 2))
        interval["startTime"] = moved.isoformat()
    assert on_sale_page.html(created(staff)).count("<svg") == 8


def test_refusals_pass_through() -> None:
    class Refusing(StaffApi):
        def get(self, path: str) -> dict[str, Any]:
            raise RefusedError("for staff only", "STAFF_REQUIRED")

    with pytest.raises(RefusedError):
        created(Refusing())


def test_a_series_with_one_point_is_seen() -> None:
    chart = drawing.lines(drawing.Axis(0, 10), {"a": [(5, 1)], "b": [(1, 1), (2, 2)], "c": []})
    assert [shape.style for shape in chart.shapes if isinstance(shape, drawing.Dot)] == [
        drawing.Style.FIRST
    ]
    assert svg.write(chart).count("<circle") == 1
