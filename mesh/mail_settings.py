"""How the settings of mail are written: the server's URL and the sender's address."""

from dataclasses import dataclass, field
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

_DEFAULT_PORT = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mails go. `starttls` None: encrypted when the server offers it."""

    host: str
    port: int
    is_tls: bool
    starttls: bool | None
    user: str | None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads `smtp[s]://[user:password@]host[:port][?starttls=true|false]`.

        Raises ValueError, which does not repeat the URL: there may be a password in it.
        """
        wrong = ValueError("not of the form smtp://host:587 or smtps://host:465")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # Its text quotes what it takes for the port: a piece of the password, perhaps.
            raise wrong from None
        if parts.scheme not in _DEFAULT_PORT or not parts.hostname:
            raise wrong
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        asked = query.pop("starttls", None)
        if query or asked not in (None, "true", "false") or parts.path not in ("", "/"):
            raise ValueError("after the host only ?starttls=true or ?starttls=false is known")
        return cls(
            host=parts.hostname,
            port=port or _DEFAULT_PORT[parts.scheme],
            is_tls=parts.scheme == "smtps",
            starttls=None if asked is None else asked == "true",
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password or ""),
        )


def address_of(text: str) -> Address:
    """The address in `Name <local@domain>` or `local@domain`. Raises ValueError."""
    name, spec = parseaddr(text)
    local, _, domain = spec.rpartition("@")
    if not local or not domain or not text.isprintable():
        raise ValueError("not a mail address")
    # RFC 5890: servers know a domain by its ASCII form.
    return Address(name, local, domain.encode("idna").decode())
