"""Writes the files of /openapi.json and /docs: the document and Swagger UI from its package.

Both scripts are files, so that the content security policy needs no exception for scripts.
"""

import html
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DOCUMENT, PAGE = "openapi.json", "index.html"
CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "png": "image/png",
    "json": "application/json",
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
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  queryConfigEnabled: false
});
"""


def write(folder: Path, document: dict[str, Any]) -> None:
    """Writes openapi/openapi.json and docs/ into `folder`."""
    openapi, docs = folder / "openapi", folder / "docs"
    openapi.mkdir(parents=True, exist_ok=True)
    docs.mkdir(parents=True, exist_ok=True)
    (openapi / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (docs / PAGE).write_text(_PAGE.format(title=html.escape(document["info"]["title"])))
    (docs / "start.js").write_text(_START)
    for name in _FILES:
        shutil.copyfile(_package() / name, docs / name)


def _package() -> Path:
    spec = find_spec("swagger_ui")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package swagger-ui-py is not installed")
    return Path(spec.submodule_search_locations[0]) / "static"
