"""The last touch on answers, in Lua: success statuses, and the gateway's own errors.

Only what configuration alone cannot say is done there; see lua/replies.lua.
"""

from pathlib import Path

from gateway.extension import Config, extension

FILTER = "envoy.filters.http.lua"
SUCCESS_STATUS = "success_status"
"""Key of a route's metadata under FILTER: the HTTP status of a REST call that succeeds."""

_SCRIPT = Path(__file__).parent / "lua" / "replies.lua"


def lua() -> Config:
    return extension(
        FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": _SCRIPT.read_text()},
    )
