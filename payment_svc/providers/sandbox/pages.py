"""The sandbox's payment page as HTML.

Its script and style are fixed texts inside the page, so that its own content security
policy can name them by their hashes; what varies is in attributes and text.
"""

import base64
import hashlib
import re
from pathlib import Path

import jinja2

from payment_svc.providers.sandbox.bank import SandboxSession

CONTENT_TYPE = "text/html; charset=utf-8"

_SOURCE = (Path(__file__).parent / "checkout.html").read_text(encoding="utf-8")
_TEMPLATE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    _SOURCE
)


def checkout(session: SandboxSession) -> str:
    """The page of a session in its state."""
    return _TEMPLATE.render(session=session)


def _hash(tag: str) -> str:
    """The CSP source of the page's one inline script or style."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", _SOURCE, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"the page has {len(found)} <{tag}> elements, not one")
    digest = hashlib.sha256(found[0].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash('script')}",
        f"style-src {_hash('style')}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The strictest policy under which the page works; sent as a header with it."""
