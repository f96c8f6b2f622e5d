"""Serves /openapi.json, /contract.binpb, /docs and the page at / from files. openapi/page.py writes the files.

Envoy's file server answers only GET and HEAD.
"""

from pathlib import Path

from gateway.extension import Config, extension, typed
from openapi import page

DOCUMENT, CONTRACT, PAGE = "/openapi.json", "/contract.binpb", "/docs"
WELCOME = f"{PAGE}/{page.WELCOME}"
"""The page at /: lua/requests.lua changes the path."""

_DOCUMENT_SECONDS = 60
_PAGE_SECONDS = 3600


def file_server(folder: Path) -> Config:
    """The filter that serves the files of `folder`; it ignores other paths."""
    return extension(
        "envoy.filters.http.file_server",
        "envoy.extensions.filters.http.file_server.v3.FileServerConfig",
        manager_config={"thread_pool": {"thread_count": 1}},
        path_mappings=[
            {"request_path_prefix": PAGE, "file_path_prefix": f"{folder}{PAGE}"},
            # Folders with one file, because the file server maps paths only to folders.
            {"request_path_prefix": DOCUMENT, "file_path_prefix": f"{folder}/openapi"},
            {"request_path_prefix": CONTRACT, "file_path_prefix": f"{folder}/contract"},
        ],
        content_types=page.CONTENT_TYPES,
        default_content_type="application/octet-stream",
        directory_behaviors=[
            {"default_file": name} for name in (page.PAGE, page.DOCUMENT, page.CONTRACT)
        ],
    )


def routes(security_headers: str, nowhere: Config) -> list[Config]:
    """Routes that set response headers for the documentation; the file server answers before them.

    `security_headers` is the name of the filter that writes these headers, `nowhere` the route of
    a cluster that does not exist.
    """
    return [
        *(
            _route({"path": path}, security_headers, nowhere, _DOCUMENT_SECONDS, {})
            for path in (DOCUMENT, CONTRACT)
        ),
        _route(
            {"path_separated_prefix": PAGE},
            security_headers,
            nowhere,
            _PAGE_SECONDS,
            {"content-security-policy": page.CONTENT_SECURITY_POLICY},
        ),
    ]


def _route(
    match: Config, security_headers: str, nowhere: Config, seconds: int, own: dict[str, str]
) -> Config:
    headers = {"cache-control": f"public, max-age={seconds}", **own}
    return {
        "name": "documentation",
        "match": match,
        "route": nowhere,
        "typed_per_filter_config": {
            security_headers: typed(
                "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
                mutations={
                    "response_mutations": [
                        {
                            "append": {
                                "header": {"key": key, "value": value},
                                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                            }
                        }
                        for key, value in headers.items()
                    ]
                },
            )
        },
    }
