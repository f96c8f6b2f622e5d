"""The one error that the demo shows instead of a result."""


class DemoError(Exception):
    """Why the demo itself could not run, and what to do about it. Shown without a traceback."""
