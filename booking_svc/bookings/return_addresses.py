"""Where a payment page may send the customer: web pages and apps, never code or local files.

The contract's pattern checks the form (absolute, without white space and credentials); here are the
schemes. Addresses are passed to the provider as given, with its placeholders.
"""

from urllib.parse import urlsplit

from mesh.errors import FieldViolation, invalid

# A browser runs or displays their content in the page that follows them, or opens local data.
_UNSAFE_SCHEMES = frozenset(
    {"about", "blob", "data", "file", "filesystem", "javascript", "vbscript", "view-source"}
)
# Not an app's, and nothing that shows a page to the customer today.
_NOT_APPS = frozenset({"ftp", "ws", "wss"})


def checked(url: str, *, field: str, is_http_allowed: bool) -> str:
    """The address. Raises VALIDATION_FAILED that names `field`."""
    scheme = url.partition(":")[0].lower()
    if scheme in ("https", "http") and not _has_host(url):
        raise invalid(FieldViolation(field, "must name a host"))
    if scheme in _UNSAFE_SCHEMES | _NOT_APPS or (scheme == "http" and not is_http_allowed):
        allowed = "https:// or http://" if is_http_allowed else "https://"
        raise invalid(
            FieldViolation(field, f"must begin with {allowed}, or with an app's own scheme")
        )
    return url


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False
