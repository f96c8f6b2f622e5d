import json
from pathlib import Path

import pytest

from launcher import logs


def write(home: Path, process: str, *lines: object) -> None:
    folder = home / "logs"
    folder.mkdir(exist_ok=True)
    with (folder / f"{process}.log").open("a") as log:
        for line in lines:
            log.write((line if isinstance(line, str) else json.dumps(line)) + "\n")


def rpc(second: int, request_id: str, **more: object) -> dict[str, object]:
    return {
        "message": "rpc",
        "time": f"2026-11-21T04:00:{second:02}.000+00:00",
        "level": "INFO",
        "method": "/boxoffice.stock.v1.StockService/Reserve",
        "caller": "booking_svc",
        "code": "OK",
        "duration_ms": 4.2,
        "request_id": request_id,
        **more,
    }


def test_logs_are_merged_by_time_and_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "booking_svc", rpc(1, "one"), rpc(3, "three", reason="SOLD_OUT"))
    write(tmp_path, "stock_svc", rpc(2, "two"), "not JSON, and after the second")
    logs.show(tmp_path, follow=False)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown] == ["ms", "ms", "second", "ms"]
    assert shown[0] == (
        "04:00:01.000 booking_svc    one      StockService/Reserve ← booking_svc: OK in 4.2 ms"
    )
    assert "SOLD_OUT" in shown[3]


def test_one_request_and_one_process_can_be_selected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "booking_svc", rpc(1, "one"), rpc(3, "three"))
    write(tmp_path, "stock_svc", rpc(2, "one"))
    logs.show(tmp_path, follow=False, text="one")
    assert len(capsys.readouterr().out.splitlines()) == 2
    logs.show(tmp_path, follow=False, only="stock_svc", text="one")
    assert "stock_svc" in capsys.readouterr().out


def test_an_incomplete_line_is_read_when_it_is_complete(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text('{"message": "whole"}\n{"mess')
    reader = logs._Reader(log)
    assert [line.fields["message"] for line in reader.read()] == ["whole"]
    with log.open("a") as more:
        more.write('age": "late"}\n')
    assert [line.fields["message"] for line in reader.read()] == ["late"]
