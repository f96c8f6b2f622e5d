"""Log lines: JSON, complete and in order."""

import json
import subprocess
import sys

_PROCESS = """
import asyncio, logging, uuid
from mesh.observability import logs

logs.configure("stock_svc", "INFO", replica=1)
calls, other = logging.getLogger(logs.CALLS), logging.getLogger("other")

async def main():
    calls.info("rpc", extra={"code": "OK", "method": "/first", "user_id": uuid.UUID(int=7)})
    other.info("stopping %s", "\u00fc")
    calls.info("rpc", extra={"code": "OK", "method": "/second"})
    try:
        raise ValueError("no room for mira@example.com")
    except ValueError:
        calls.exception("a call failed")
    calls.info("rpc", extra={"code": "OK", "method": "/third"})

asyncio.run(main())
other.info("stopped")
calls.info("rpc", extra={"code": "OK", "method": "/fourth"})
"""


def test_lines_are_json_and_in_order() -> None:
    """Those about calls are written together, also at the end of the process."""
    completed = subprocess.run(
        [sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in completed.stdout.splitlines()]
    assert [line.get("method", line["message"]) for line in lines] == [
        "/first", "stopping \u00fc", "/second", "a call failed", "/third", "stopped", "/fourth",
    ]  # fmt: skip
    assert lines[0]["user_id"] == "00000000-0000-0000-0000-000000000007"
    assert {(line["service"], line["replica"]) for line in lines} == {("stock_svc", 1)}
    assert [line["level"] for line in lines].count("ERROR") == 1
    assert "ValueError" in lines[3]["exc_info"]
    assert "mira@example.com" not in completed.stdout
    assert completed.stderr == ""
