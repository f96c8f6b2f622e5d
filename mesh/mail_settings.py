"""Parses the mail settings: the SMTP server's URL and the sender's address."""

from dataclasses import dataclass, field
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from mesh.text import to_a_labels

_DEFAULT_PORT = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """An SMTP server. `starttls` None: encrypt when the server offers STARTTLS."""

    host: str
    port: int
    is_tls: bool
    starttls: bool | None
    user: str | None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads `smtp[s]://[user:password@]host[:port][?starttls=true|false]`.

        Raises ValueError, whose text does not contain the URL: it may hold a password.
        """
        malformed = ValueError("must be of the form smtp://host:587 or smtps://host:465")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # urlsplit's error quotes the port it parsed, which may be part of the password.
            raise malformed from None
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname:
            raise malformed
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        starttls = query.pop("starttls", None)
        if query or starttls not in (None, "true", "false") or parts.path not in ("", "/"):
            raise ValueError("allows only ?starttls=true or ?starttls=false after the host")
        return cls(
            host=parts.hostname,
            port=port or _DEFAULT_PORT[parts.scheme],
            is_tls=parts.scheme == "smtps",
            starttls=None if starttls is None else starttls == "true",
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password or ""),
        )


def address_of(text: str) -> Address:
    """Parses `Name <local@domain>` or `local@domain`. Raises ValueError."""
    name, spec = parseaddr(text)
    local, _, domain = spec.rpartition("@")
    if not local or not domain or not text.isprintable():
        raise ValueError("not a mail address")
    # RFC 5890: SMTP servers expect the ASCII form of a domain.
    return Address(name, local, to_a_labels(domain) or domain.encode("idna").decode())
