"""`python -m tools.catalogue import FILE [--dry-run]` and `python -m tools.catalogue export FILE`."""

import argparse
import getpass
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mesh.settings import MeshSettings
from tools.catalogue import lines
from tools.catalogue.api import Api, RefusedError
from tools.catalogue.lines import Line

_console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    text = options.file.read_text("utf-8") if options.command == "import" else ""
    if options.command == "import":
        parsed, faults = lines.read(text.splitlines())
        for fault in faults:
            print(fault)
        if faults:
            _console.print(f"{len(faults)} faults; nothing was imported.")
            return 1
        if options.dry_run:
            _console.print(f"{len(parsed)} lines, no faults. Nothing was imported.")
            return 0
    with Api(options.url) as api:
        try:
            api.sign_in(options.email, _password())
            if options.command == "export":
                _export(api, options.file)
                return 0
            return _import(api, parsed, digest=hashlib.sha256(text.encode()).hexdigest())
        except RefusedError as refusal:
            print(refusal)
            return 1


def _import(api: Api, parsed: list[Line], *, digest: str) -> int:
    """Creates the content of the lines. Repeated after an error, it continues where it stopped."""
    ids: dict[str, dict[str, str]] = {kind: {} for kind in lines.REFERRED_TO}
    for line in track(parsed, description="Importing", console=_console):
        references = {
            kind: created.get(str(line.content.get(f"{kind}Id")), "")
            for kind, created in ids.items()
        }
        body = lines.body_of(line, references)
        # The same file has the same idempotency keys: a repeated import creates nothing twice.
        key = f"import-{digest[:32]}-{line.number}"
        try:
            if line.kind == "venue":
                resource = api.create("/api/v1/venues", body["venue"], key=key)
                ids["venue"][line.ref] = resource["venueId"]
            elif line.kind == "auditorium":
                path = f"/api/v1/venues/{body.pop('venueId')}/auditoriums"
                resource = api.create(path, body, key=key)
                ids["auditorium"][line.ref] = resource["auditoriumId"]
            elif line.kind == "production":
                resource = api.create("/api/v1/productions", body["production"], key=key)
                ids["production"][line.ref] = resource["productionId"]
            else:
                api.create("/api/v1/events", body["event"], key=key)
        except RefusedError as refusal:
            print(f"line {line.number}: {refusal}")
            _console.print("Stopped. Importing the same file again continues with this line.")
            return 1
    _console.print(f"{len(parsed)} lines imported.")
    return 0


def _export(api: Api, file: Path) -> None:
    """Writes all venues and productions, the auditoriums with events, and the events.

    Cancelled events are left out.
    """
    events = [
        event
        for event in track(
            api.all("/api/v1/events", "events"), description="Reading", console=_console
        )
        if event["status"] != "CANCELLED"
    ]
    auditorium_ids = dict.fromkeys(
        event["auditoriumId"] for event in events if event.get("auditoriumId")
    )
    with file.open("w", encoding="utf-8") as output:
        for venue in api.all("/api/v1/venues", "venues"):
            _write(output, "venue", venue)
        productions = list(api.all("/api/v1/productions", "productions"))
        for production in productions:
            _write(output, "production", production)
        for auditorium_id in track(
            list(auditorium_ids), description="Auditoriums", console=_console
        ):
            auditorium = api.get(f"/api/v1/auditoriums/{auditorium_id}")
            for row in auditorium["rows"]:
                for seat in row["seats"]:
                    seat.pop("seatId", None)
            _write(output, "auditorium", auditorium)
        known = {production["productionId"] for production in productions}
        for event in events:
            if event.get("productionId") not in known:
                # The production was deleted after its last event.
                event.pop("productionId", None)
            _write(output, "event", event)
    _console.print(f"{len(events)} events exported to {file}.")


def _write(output: Any, kind: str, content: dict[str, Any]) -> None:
    output.write(json.dumps({kind: content}, ensure_ascii=False) + "\n")


def _password() -> str:
    """From the environment or the terminal: other users could see a command-line argument."""
    return os.environ.get("BOXOFFICE_STAFF_PASSWORD") or getpass.getpass("Password: ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="catalogue", description="Imports and exports catalogues."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in (
        ("import", "create the content of a file; nothing if any line has a fault"),
        ("export", "write the whole catalogue to a file"),
    ):
        command = commands.add_parser(name, help=description)
        command.add_argument("file", type=Path)
        command.add_argument("--url", default=MeshSettings().gateway_url)
        command.add_argument("--email", default=os.environ.get("BOXOFFICE_STAFF_EMAIL", ""))
        if name == "import":
            command.add_argument(
                "--dry-run", action="store_true", help="only print every fault, by line"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
