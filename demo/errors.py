"""The error that the demo shows instead of a result."""


class DemoError(Exception):
    """The demo could not run. The text is the reason and a remedy, shown without a traceback."""
