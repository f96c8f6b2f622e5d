"""`python -m tools.boxoffice COMMAND`: see `--help`."""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from mesh.settings import MeshSettings
from tools.boxoffice import draw, on_sale_page, on_sale_report, sample_data, selling
from tools.rest import Api, RefusedError

_SECRET = "BOXOFFICE_ADMIN_REGISTRATION_SECRET"

Command = Callable[[Api, argparse.Namespace], Any]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = MeshSettings()
    url = options.url or settings.gateway_url
    options.home = settings.home
    options.session_file = settings.home / "boxoffice-session.json"
    try:
        with Api(url, _stored_token(options.session_file)) as api:
            result = options.run(api, options)
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        if refusal.reason.startswith("TOKEN_"):
            print("Sign in: boxoffice login EMAIL", file=sys.stderr)
        return 1
    except httpx.TransportError as error:
        print(f"{url} does not answer ({error}). Start the mesh: make up", file=sys.stderr)
        return 1
    print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def _register(api: Api, options: argparse.Namespace) -> Any:
    account = {"email": options.email, "password": _password(), "fullName": options.name}
    if options.admin:
        secret = os.environ.get(_SECRET) or getpass.getpass("Admin registration secret: ")
        api.post("/api/v1/auth/admin/register", {**account, "adminSecret": secret})
    else:
        api.post("/api/v1/auth/register", account)
    return _remember(api, options, account["password"])


def _login(api: Api, options: argparse.Namespace) -> Any:
    return _remember(api, options, _password())


def _remember(api: Api, options: argparse.Namespace, password: str) -> str:
    """Signs in and stores the access token for the next commands."""
    session = api.sign_in(options.email, password)
    file: Path = options.session_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        json.dump({"accessToken": session["accessToken"]}, output)
    user = session["user"]
    return f"Signed in as {user['email']} ({user['role']}) for {session['expiresIn'] // 60} min."


def _stored_token(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["accessToken"])
    except (OSError, ValueError, KeyError):
        return ""


def _on_sale_report(api: Api, options: argparse.Namespace) -> Any:
    created = on_sale_report.create(api, options.event_id, commitment=options.commitment)
    folder = options.folder or options.home / "on-sale-reports" / options.event_id
    files = on_sale_page.write(created, folder)
    problems = on_sale_report.problems(created)
    if problems:
        raise RefusedError("\n".join([*problems, *map(str, files)]))
    hint = [] if files[-1].suffix == ".png" else [on_sale_page.NO_PICTURE]
    verdicts = [text for _, text in on_sale_page.verdicts(created)]
    return "\n".join([*verdicts, *map(str, files), *hint])


def _create_key(api: Api, options: argparse.Namespace) -> Any:
    end = datetime.now(UTC) + timedelta(days=options.days)
    body = {"name": options.name, "role": options.role, "expireTime": end.isoformat()}
    return api.post("/api/v1/api-keys", body)


def _revoke_key(api: Api, options: argparse.Namespace) -> Any:
    api.delete(f"/api/v1/api-keys/{options.api_key_id}")
    return "Revoked."


def _password() -> str:
    """From the environment or the terminal: other users could see a command-line argument."""
    return os.environ.get("BOXOFFICE_PASSWORD") or getpass.getpass("Password: ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boxoffice",
        description="Tries a running mesh through its gateway. Prints the answers as JSON.",
        epilog="The password is asked for, or read from BOXOFFICE_PASSWORD.",
    )
    parser.add_argument("--url", help="the gateway; default: of the settings")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, description: str, *arguments: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        for argument in arguments:
            command.add_argument(argument)
        return command

    add(
        "sample-data",
        lambda api, _: sample_data.create(api, os.environ.get(_SECRET, "")),
        "create accounts, events on sale and a paid booking, unless they exist",
    )
    register = add("register", _register, "create an account and sign in", "email")
    register.add_argument("--name", default="Mira Rao")
    register.add_argument("--admin", action="store_true", help=f"with the secret in {_SECRET}")
    add("login", _login, "sign in; later commands are this user's", "email")
    add("events", lambda api, _: list(api.all("/api/v1/events", "events")), "list the events")
    event = add(
        "create-event",
        lambda api, options: selling.create_event(api, options.name, options.offer),
        "put an event on sale, as staff",
        "name",
    )
    event.add_argument(
        "--offer",
        action="append",
        required=True,
        type=selling.offer,
        metavar="'NAME,PRICE,CURRENCY,PLACES'",
        help="price in minor units, e.g. 'Floor,150000,INR,500'; may be repeated",
    )
    book = add(
        "book",
        lambda api, options: selling.book(
            api, options.event_id, options.offer, options.quantity, options.provider
        ),
        "hold places and open the payment page",
        "event_id",
    )
    book.add_argument("--offer", help="name of the offer; default: the first")
    book.add_argument("--quantity", type=int, default=1)
    book.add_argument("--provider", default="sandbox")
    add(
        "pay",
        lambda api, options: selling.pay(api, options.booking_id),
        "pay a booking in the sandbox and wait for its confirmation",
        "booking_id",
    )
    add(
        "booking",
        lambda api, options: api.get(f"/api/v1/bookings/{options.booking_id}"),
        "show a booking",
        "booking_id",
    )
    verify = add(
        "verify-draw",
        lambda api, options: draw.verify(api, options.event_id, options.ticket, options.commitment),
        "check the draw of an event's waiting room, and the positions of tickets",
        "event_id",
    )
    verify.add_argument("ticket", nargs="*", help="ids of tickets")
    verify.add_argument("--commitment", help="what GetDraw showed before the draw")
    report = add(
        "on-sale-report",
        _on_sale_report,
        "write what happened in an event's sale, as staff: report.json, report.html, report.png",
        "event_id",
    )
    report.add_argument("--folder", type=Path, help="default: on-sale-reports in the state folder")
    report.add_argument("--commitment", help="what GetDraw showed before the draw")
    key = add("create-key", _create_key, "create an API key, as admin; it is shown once", "name")
    key.add_argument("--role", choices=("CUSTOMER", "STAFF", "ADMIN"), default="STAFF")
    key.add_argument("--days", type=int, default=90)
    add("keys", lambda api, _: list(api.all("/api/v1/api-keys", "apiKeys")), "list the API keys")
    add(
        "revoke-key",
        _revoke_key,
        "revoke an API key",
        "api_key_id",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
