"""`python -m tools.catalogue import FILE [--dry-run]` and `python -m tools.catalogue export FILE`."""

import argparse
import getpass
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mesh.settings import MeshSettings
from tools.catalogue import lines
from tools.catalogue.lines import Line
from tools.rest import Api, RefusedError

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
    auditoriums = [
        api.get(f"/api/v1/auditoriums/{auditorium_id}")
        for auditorium_id in track(
            _referred_to("auditorium", events), description="Auditoriums", console=_console
        )
    ]
    with file.open("w", encoding="utf-8") as output:
        for venue in _all("venue", api, auditoriums):
            _write(output, "venue", venue)
        for production in _all("production", api, events):
            _write(output, "production", production)
        for auditorium in auditoriums:
            for row in auditorium["rows"]:
                for seat in row["seats"]:
                    seat.pop("seatId", None)
            _write(output, "auditorium", auditorium)
        for event in events:
            _write(output, "event", event)
    _console.print(f"{len(events)} events exported to {file}.")


def _all(kind: str, api: Api, referring: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The listed resources of a kind, then the deleted ones that others refer to."""
    listed = set()
    for resource in api.all(f"/api/v1/{kind}s", f"{kind}s"):
        listed.add(resource[f"{kind}Id"])
        yield resource
    for resource_id in _referred_to(kind, referring):
        if resource_id not in listed:
            yield api.get(f"/api/v1/{kind}s/{resource_id}")


def _referred_to(kind: str, referring: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(filter(None, (resource.get(f"{kind}Id") for resource in referring))))


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
