"""The error with which a service's process refuses to start, without the process."""

import importlib
import os

import pytest


def error_at_start(service: str, **variables: str) -> str:
    """Runs the service's main() with these environment variables as its only settings.

    Returns what it writes to stderr before it exits.
    """
    with pytest.MonkeyPatch.context() as patched:
        for name in os.environ:
            if name.startswith("BOXOFFICE_"):
                patched.delenv(name)
        for name, value in variables.items():
            patched.setenv(f"BOXOFFICE_{name}", value)
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"{service}.__main__").main()
    return str(ended.value)
