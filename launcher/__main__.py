"""The command line: `python -m launcher up`, in the virtual environment also `boxoffice up`."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from launcher.errors import LaunchError
from mesh.settings import MeshSettings


def main() -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args()
    try:
        return _COMMANDS[arguments.command](arguments)
    except LaunchError as error:
        _show(error)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boxoffice", description="Runs Boxoffice on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("up", help="start the mesh and show its status until Ctrl-C")
    commands.add_parser("down", help="stop the mesh, including processes of a killed launcher")
    restart = commands.add_parser("restart", help="restart services and gateways one by one")
    restart.add_argument(
        "names", nargs="*", metavar="NAME", help="e.g. stock_svc or gateway-1 (default: all)"
    )
    commands.add_parser("migrate", help="migrate the databases to this version's schema")
    logs = commands.add_parser("logs", help="show the logs of all processes, merged by time")
    logs.add_argument("text", nargs="?", default="", help="only lines that contain this text")
    logs.add_argument("--follow", "-f", action="store_true", help="keep printing new lines")
    logs.add_argument("--process", default="", help="only this process, e.g. stock_svc-1")
    logs.add_argument("--lines", type=int, default=200, help="number of last lines (default: 200)")
    backup = commands.add_parser("backup", help="back up the embedded databases, keys and secrets")
    backup.add_argument(
        "file", nargs="?", type=Path, help="target file (default: in the state folder)"
    )
    restore = commands.add_parser("restore", help="restore a backup into the state folder")
    restore.add_argument("file", type=Path)
    protos = commands.add_parser("protos", help="compile the contract into build/")
    protos.add_argument("--force", action="store_true", help="compile even if nothing changed")
    settings = commands.add_parser("settings", help="list all settings")
    form = settings.add_mutually_exclusive_group()
    form.add_argument("--write", action="store_true", help="write .env.example")
    form.add_argument("--check", action="store_true", help="fail if .env.example is out of date")
    commands.add_parser("sockets", help="print the folder of the embedded servers' sockets")
    commands.add_parser("mails", help="write a page with samples of all mails")
    client = commands.add_parser("client", help="write protos and a wheel for clients")
    client.add_argument("--go-module", default="boxoffice", help="module of the Go packages")
    commands.add_parser("third-party", help="write the protos that the contract imports")
    keys = commands.add_parser("keys", help="manage the keys that sign access tokens")
    keys.add_argument(
        "action", choices=("rotate",), help="add a key; the old one is removed automatically"
    )
    commands.add_parser("check", help="run linters, type checks and contract checks")
    return parser


# Commands import their modules lazily: `down` must work when the contract does not compile, and
# modules that import generated stubs must be imported after the contract is compiled.


def _up(_: argparse.Namespace) -> int:
    settings = _settings()
    _compile()
    from launcher import settings_listing, up

    settings_listing.refuse_unknown(os.environ)
    return up.run(settings)


def _down(_: argparse.Namespace) -> int:
    from launcher import leftovers

    settings = _settings()
    home = settings.home.absolute()
    had_launcher = leftovers.stop_launcher(home, settings.shutdown_grace_seconds * 2 + 30)
    with leftovers.hold(home):
        stopped = leftovers.stop_all(home, settings.shutdown_grace_seconds + 2)
    if stopped:
        print(f"Stopped processes of an earlier run: {', '.join(stopped)}.")
    print("Stopped." if had_launcher or stopped else f"No mesh is running in {home}.")
    return 0


def _restart(arguments: argparse.Namespace) -> int:
    import asyncio

    from launcher import control

    home = _settings().home.absolute()
    asyncio.run(control.restart(home, arguments.names, lambda text: print(text, flush=True)))
    print("Restarted.")
    return 0


def _migrate(_: argparse.Namespace) -> int:
    _compile()
    from launcher import migrations
    from launcher.provided import Provided
    from launcher.settings_listing import load

    migrations.run(_settings().home.absolute(), load(Provided))
    print("The databases are migrated to this version's schema.")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from launcher import logs

    logs.show(
        _settings().home.absolute(),
        follow=arguments.follow,
        only=arguments.process,
        text=arguments.text,
        lines=arguments.lines,
    )
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from launcher import backup

    print(f"Wrote {backup.create(_settings().home.absolute(), arguments.file)}.")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from launcher import backup

    previous = backup.restore(_settings().home.absolute(), arguments.file)
    print("Restored." if previous is None else f"Restored. The previous data is in {previous}.")
    return 0


def _protos(arguments: argparse.Namespace) -> int:
    generated = _compile(force=arguments.force)
    print("The contract is compiled." if generated else "The contract is up to date.")
    return 0


def _mails(_: argparse.Namespace) -> int:
    _compile()
    from launcher import mail_previews

    print(mail_previews.write())
    return 0


def _client(arguments: argparse.Namespace) -> int:
    _compile()
    from launcher import client

    print(client.write(go_module=arguments.go_module))
    return 0


def _third_party(_: argparse.Namespace) -> int:
    from launcher import third_party

    third_party.write()
    return 0


def _list_settings(arguments: argparse.Namespace) -> int:
    _compile()
    from launcher import settings_listing

    if arguments.write:
        settings_listing.write_example()
    elif arguments.check:
        settings_listing.check_example()
    else:
        settings_listing.show()
    return 0


def _sockets(_: argparse.Namespace) -> int:
    from launcher import sockets

    print(sockets.folder(_settings().home.absolute()))
    return 0


def _keys(_: argparse.Namespace) -> int:
    _compile()
    from launcher import signing_keys

    print(signing_keys.rotate())
    return 0


def _check(_: argparse.Namespace) -> int:
    _compile()
    from launcher import checks

    return checks.run()


_COMMANDS = {
    "up": _up,
    "down": _down,
    "restart": _restart,
    "migrate": _migrate,
    "logs": _logs,
    "backup": _backup,
    "restore": _restore,
    "protos": _protos,
    "settings": _list_settings,
    "sockets": _sockets,
    "mails": _mails,
    "client": _client,
    "third-party": _third_party,
    "keys": _keys,
    "check": _check,
}


def _settings() -> MeshSettings:
    from launcher.settings_listing import load

    return load(MeshSettings)


def _compile(*, force: bool = False) -> bool:
    from launcher import protos

    try:
        generated = protos.compile_contract(force=force)
    except protos.ProtoError as error:
        raise LaunchError("The contract does not compile.", str(error)) from error
    if generated:
        importlib.invalidate_caches()
    return generated


def _show(error: LaunchError) -> None:
    red, end = (
        ("\033[31m", "\033[0m") if sys.stderr.isatty() and not os.getenv("NO_COLOR") else ("", "")
    )
    print(f"{red}{error.problem}{end}", file=sys.stderr)
    if error.remedy:
        print(error.remedy, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
