"""Catalogue files: every fault is reported with its line before anything is created."""

import json
from typing import Any

import pytest

from tools.catalogue import lines
from tools.catalogue.__main__ import main
from tools.catalogue.lines import body_of

VENUE = {"venue": {"venueId": "regal", "name": "Regal", "timeZone": "Asia/Kolkata"}}
AUDITORIUM = {
    "auditorium": {
        "auditoriumId": "screen-1",
        "venueId": "regal",
        "name": "Screen 1",
        "rows": [{"label": "A", "seats": [{"number": "1", "seatType": "REGULAR"}]}],
    }
}
PRODUCTION = {"production": {"productionId": "monsoon", "title": "Monsoon Nights"}}
EVENT: dict[str, Any] = {
    "event": {
        "name": "Monsoon Nights",
        "auditoriumId": "screen-1",
        "startTime": "2099-07-04T14:00:00Z",
        "endTime": "2099-07-04T17:00:00Z",
        "saleStartTime": "2020-01-01T00:00:00Z",
        "offers": [
            {
                "name": "Seats",
                "price": {"currencyCode": "INR", "amountMinor": "150000"},
                "seatType": "REGULAR",
            }
        ],
    }
}


def changed(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    [(kind, inner)] = content.items()
    return {kind: {**inner, **changes}}


def texts(*contents: Any) -> list[str]:
    return [content if isinstance(content, str) else json.dumps(content) for content in contents]


def faults(*contents: Any) -> list[tuple[int, str]]:
    return [(fault.line, fault.field) for fault in lines.read(texts(*contents))[1]]


def test_a_good_file_has_no_faults() -> None:
    parsed, wrong = lines.read(texts(VENUE, "", AUDITORIUM, EVENT))
    assert wrong == []
    assert [(line.number, line.kind, line.ref) for line in parsed] == [
        (1, "venue", "regal"),
        (3, "auditorium", "screen-1"),
        (4, "event", ""),
    ]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (changed(VENUE, name=""), "venue.name"),
        (changed(VENUE, colour="red"), "venue"),
        (changed(AUDITORIUM, venueId="other"), "auditorium.venueId"),
        (changed(AUDITORIUM, rows=[]), "rows"),
        (changed(EVENT, auditoriumId="other"), "event.auditoriumId"),
        (changed(EVENT, productionId="other"), "event.productionId"),
        (changed(PRODUCTION, title=""), "production.title"),
        (changed(EVENT, offers=[]), "event.offers"),
        (changed(EVENT, startTime="tomorrow"), "event"),
        ("{", ""),
        ("[]", ""),
        ({"venue": {}, "event": {}}, ""),
        ({"venue": 1}, ""),
    ],
)
def test_a_fault_names_its_line_and_field(content: Any, field: str) -> None:
    reported = faults(
        changed(VENUE, venueId="regal"), changed(AUDITORIUM, auditoriumId="screen-1"), content
    )
    assert (3, field) in reported
    assert {line for line, _ in reported} == {3}


def test_all_faults_of_all_lines_are_reported() -> None:
    row = {"label": "A", "seats": [{"number": "1", "seatType": "REGULAR"}]}
    assert faults(VENUE, VENUE, changed(AUDITORIUM, rows=[row, row]), changed(EVENT, name="")) == [
        (2, "venue.venueId"),
        (3, "rows[0].label"),
        (3, "rows[1].label"),
        (4, "event.name"),
    ]


def test_fields_that_the_server_sets_are_not_sent() -> None:
    exported = changed(
        EVENT,
        event_id="x",
        etag="7",
        available=3,
        totalCapacity=4,
        status="ON_SALE",
        createTime="2020-01-01T00:00:00Z",
        productionId="monsoon",
    )
    exported["event"]["offers"] = [{**EVENT["event"]["offers"][0], "offerId": "x", "available": 3}]
    line = lines.read(texts(VENUE, AUDITORIUM, PRODUCTION, exported))[0][3]
    ids = {"venue": "v", "auditorium": "a", "production": "p"}
    assert body_of(line, ids) == changed(EVENT, auditoriumId="a", productionId="p")


def test_a_dry_run_prints_every_fault(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "catalogue.jsonl"
    file.write_text("\n".join(texts(changed(VENUE, name=""), "{")))
    assert main(["import", str(file), "--dry-run"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["line 1", "line 2"]
    file.write_text("\n".join(texts(VENUE, AUDITORIUM, EVENT)))
    assert main(["import", str(file), "--dry-run"]) == 0
