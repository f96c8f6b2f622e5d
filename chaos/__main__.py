"""`python -m chaos`. Exit codes: 0 for a clean run, 1 for failures, 2 when it could not run."""

import argparse
import asyncio
import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from chaos.faults import plan
from chaos.faults.plan import Choice, Injection
from launcher import protos
from launcher.errors import LaunchError
from mesh.paths import ROOT

CLEAN, FAILED, NOT_RUN, INTERRUPTED = 0, 1, 2, 130

_FOLDER = ROOT / "build" / "chaos"
# A load that leaves a third of two cores free: the time that a process takes to start is measured.
_DEFAULTS = {"replicas": 2, "gateways": 2, "customers": 1.0, "leavers": 1, "hold": 15}


def main() -> int:
    """Runs and returns the exit code."""
    arguments = _parser().parse_args()
    try:
        if protos.compile_contract():
            importlib.invalidate_caches()
        return asyncio.run(_run(arguments))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except (LaunchError, protos.ProtoError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
    return NOT_RUN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Sells events while processes, connections and clients fail, and audits the sale.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=3.0, metavar="N", help="default: 3")
    add("--seed", type=int, metavar="N", help="repeats the plan and the customers of another run")
    add(
        "--only",
        default="",
        metavar="FAULT[:TARGET[:SECONDS]],…",
        help=f"only these faults: {', '.join(plan.Fault)}; e.g. freeze:postgres:60",
    )
    add("--plan", type=Path, metavar="FILE", help="a plan.txt in place of the seed's plan")
    add("--replicas", type=int, metavar="N", help="of each service; default: %(default)s")
    add("--gateways", type=int, metavar="N", help="default: %(default)s")
    add("--customers", type=float, metavar="N", help="new ones a second; default: %(default)g")
    add("--leavers", type=int, metavar="N", help="who leave calls; default: %(default)s")
    add("--hold", type=int, metavar="N", help="seconds; default: %(default)s, for payments twice")
    add(
        "--patience",
        type=float,
        default=1.0,
        metavar="N",
        help="factor for the limits of recovery, where the machine does other work",
    )
    add("--report", type=Path, metavar="FOLDER", help=f"default: {_FOLDER}/SEED")
    parser.set_defaults(**_DEFAULTS)
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    # Imports the stubs, which the lines above may have generated.
    from chaos import report, run
    from testing.ports import mesh_ports

    task = asyncio.current_task()
    if task is not None:
        # SIGTERM must also stop the processes of the mesh.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    folder = arguments.report or _FOLDER / str(seed)
    options = run.Options(
        seed=seed,
        minutes=arguments.minutes,
        command=_command(arguments, seed),
        home=_home(),
        folder=folder,
        ports=mesh_ports(),
        replicas=arguments.replicas,
        gateways=arguments.gateways,
        customers_per_second=arguments.customers,
        leavers=arguments.leavers,
        hold_seconds=arguments.hold,
        only=[Choice.parse(text) for text in arguments.only.split(",") if text],
        given=_given(arguments.plan),
        patience=arguments.patience,
    )
    result = await run.run(options, _say)
    text = report.write(result, folder)
    print(text)
    print(f"Report: {folder / 'report.html'}. Logs: {options.home / 'mesh' / 'logs'}.")
    return FAILED if result.failures() else CLEAN


def _home() -> Path:
    """The state folder, which is emptied first."""
    return Path(os.environ.get("BOXOFFICE_HOME", ROOT / ".boxoffice")).absolute() / "chaos"


def _given(file: Path | None) -> list[Injection]:
    return plan.parse(file.read_text()) if file is not None else []


def _command(arguments: argparse.Namespace, seed: int) -> str:
    """The command that repeats the run."""
    parts = [f"python -m chaos --minutes {arguments.minutes:g} --seed {seed}"]
    parts += [f"--only {arguments.only}"] if arguments.only else []
    parts += [f"--plan {arguments.plan}"] if arguments.plan else []
    for name, default in _DEFAULTS.items():
        if (value := getattr(arguments, name)) != default:
            parts.append(f"--{name} {value:g}")
    return " ".join(parts)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
