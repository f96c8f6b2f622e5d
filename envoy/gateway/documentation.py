"""Serves /openapi.json and /docs from files, without a service behind it.

The files are openapi/page.py's. Only GET reaches them: Envoy's file server knows no other.
"""

from pathlib import Path

from gateway.extension import Config, extension, typed
from openapi import page

DOCUMENT, PAGE = "/openapi.json", "/docs"

_DOCUMENT_SECONDS = 60
_PAGE_SECONDS = 3600


def file_server(folder: Path) -> Config:
    """The filter that answers with the files of `folder`; other paths pass."""
    return extension(
        "envoy.filters.http.file_server",
        "envoy.extensions.filters.http.file_server.v3.FileServerConfig",
        manager_config={"thread_pool": {"thread_count": 1}},
        path_mappings=[
            {"request_path_prefix": PAGE, "file_path_prefix": f"{folder}{PAGE}"},
            # A folder with one file: the file server maps no path to a file itself.
            {"request_path_prefix": DOCUMENT, "file_path_prefix": f"{folder}/openapi"},
        ],
        content_types=page.CONTENT_TYPES,
        default_content_type="application/octet-stream",
        directory_behaviors=[{"default_file": page.PAGE}, {"default_file": page.DOCUMENT}],
    )


def routes(security_headers: str, nowhere: Config) -> list[Config]:
    """Routes that lead nowhere, for headers of their own; `security_headers` is their filter."""
    return [
        _route({"path": DOCUMENT}, security_headers, nowhere, _DOCUMENT_SECONDS, {}),
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
