"""Runs a command while every core is busy: `python -m testing.busy make test`."""

import multiprocessing
import os
import subprocess
import sys


def main(command: list[str]) -> int:
    """Returns the command's exit code."""
    burning = [
        multiprocessing.Process(target=_burn, daemon=True) for _ in range(os.cpu_count() or 1)
    ]
    for process in burning:
        process.start()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for process in burning:
            process.terminate()


def _burn() -> None:
    while True:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
