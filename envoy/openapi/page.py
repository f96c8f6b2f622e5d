"""Writes the files of /openapi.json, /docs and /: the document, Swagger UI from its package, links.

Both scripts are files, so that the content security policy needs no exception for scripts.
"""

import html
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DOCUMENT, CONTRACT = "openapi.json", "contract.binpb"
PAGE, WELCOME = "index.html", "welcome.html"
CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "png": "image/png",
    "json": "application/json",
    "binpb": "application/x-protobuf",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Swagger UI needs inline styles, and data URLs for its icons."""

_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

_PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>{title}</title>
    <link rel="stylesheet" href="/docs/swagger-ui.css">
    <link rel="icon" href="/docs/favicon-32x32.png">
  </head>
  <body>
    <div id="docs"></div>
    <script src="/docs/swagger-ui-bundle.js"></script>
    <script src="/docs/start.js"></script>
  </body>
</html>
"""
_WELCOME = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>{title}</title>
    <link rel="icon" href="/docs/favicon-32x32.png">
    <style>body {{ font: 1rem/1.6 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }}</style>
  </head>
  <body>
    <h1>{title}</h1>
    <p>This is the gateway of an API. It speaks REST, gRPC and gRPC-Web.</p>
    <ul>
      <li><a href="/docs">Read and try the API</a></li>
      <li><a href="/openapi.json">OpenAPI document</a></li>
      <li><a href="/contract.binpb">Contract as a descriptor set, e.g. for grpcurl</a></li>
      <li><a href="/health">Health of the services</a></li>
      <li><a href="/api/v1/events">Events on sale</a></li>
    </ul>
    <h2>First steps</h2>
    <ol>
      <li>Register: <code>POST /api/v1/auth/register</code></li>
      <li>Sign in: <code>POST /api/v1/auth/login</code>. Send the <code>accessToken</code> as
        <code>Authorization: Bearer …</code></li>
      <li>Choose an event: <code>GET /api/v1/events</code></li>
      <li>Book places: <code>POST /api/v1/bookings</code> with an <code>Idempotency-Key</code></li>
    </ol>
  </body>
</html>
"""
_START = Path(__file__).parent / "static" / "start.js"


def write(folder: Path, document: dict[str, Any], contract: bytes) -> None:
    """Writes openapi/openapi.json, contract/contract.binpb and docs/ into `folder`."""
    openapi, docs, descriptors = folder / "openapi", folder / "docs", folder / "contract"
    for place in (openapi, docs, descriptors):
        place.mkdir(parents=True, exist_ok=True)
    (descriptors / CONTRACT).write_bytes(contract)
    (openapi / DOCUMENT).write_text(
        json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n"
    )
    (docs / PAGE).write_text(_PAGE.format(title=html.escape(document["info"]["title"])))
    (docs / WELCOME).write_text(_WELCOME.format(title=html.escape(document["info"]["title"])))
    shutil.copyfile(_START, docs / _START.name)
    for name in _FILES:
        shutil.copyfile(_package() / name, docs / name)


def _package() -> Path:
    spec = find_spec("swagger_ui")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package swagger-ui-py is not installed")
    return Path(spec.submodule_search_locations[0]) / "static"
