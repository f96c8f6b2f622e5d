"""The sandbox's payment page as HTML, and its content security policy.

The page's script and style are constant: the policy allows them by their hashes.
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
    """The page of a session."""
    return _TEMPLATE.render(session=session)


def _hash(tag: str) -> str:
    """The CSP source of the page's one inline script or style."""
    elements = re.findall(f"<{tag}>(.*?)</{tag}>", _SOURCE, re.DOTALL)
    if len(elements) != 1:
        raise ValueError(f"the page has {len(elements)} <{tag}> elements instead of one")
    digest = hashlib.sha256(elements[0].encode()).digest()
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
"""The value of the page's content-security-policy header."""
