"""A real SMTP server for tests, with configurable errors, STARTTLS and authentication."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

USER, PASSWORD = "box office", "p:@ss/word"


@dataclass
class MailServer:
    """Received mails, and the configured replies: `answers` by recipient replace 250."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    logins: int = 0
    connections: int = 0
    refused_senders: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    refuses_senders_with: str | None = None
    hangs_up_on: str | None = None

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuses_senders_with is not None:
            self.refused_senders += 1
            return self.refuses_senders_with
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if answer := self.answers.get(address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        if self.hangs_up_on in envelope.rcpt_tos:
            assert server.transport is not None
            server.transport.close()
            return "250 never sent"
        if answer := self.answers.get(f"DATA {envelope.rcpt_tos[0]}"):
            return answer
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        self.recipients += envelope.rcpt_tos
        assert server.transport is not None
        self.encrypted.append(server.transport.get_extra_info("ssl_object") is not None)
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any
    ) -> AuthResult:
        assert isinstance(given, LoginPassword)
        self.logins += 1
        is_right = (given.login.decode(), given.password.decode()) == (USER, PASSWORD)
        return AuthResult(success=is_right, handled=False)


@asynccontextmanager
async def mail_server(
    *,
    at: MailServer | None = None,
    tls: ssl.SSLContext | None = None,
    over_tls: bool = False,
    host: str = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[MailServer]:
    """Listens on a free port, or restarts `at` on its port."""
    server = at or MailServer()

    def connected() -> SMTP:
        server.connections += 1
        return SMTP(
            server,
            hostname="mail.test",
            tls_context=None if over_tls else tls,
            authenticator=server.authenticate,
            loop=asyncio.get_running_loop(),
            **options,
        )

    listening = await asyncio.get_running_loop().create_server(
        connected, host, server.port, ssl=tls if over_tls else None
    )
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@contextmanager
def mail_server_aside() -> Iterator[MailServer]:
    """`mail_server` in a thread, for tests without an event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening = mail_server()
    try:
        yield asyncio.run_coroutine_threadsafe(listening.__aenter__(), loop).result()
    finally:
        leaving = listening.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(leaving, loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class Tls:
    """TLS contexts of both sides, with a self-signed certificate for 127.0.0.1."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def new(cls, folder: Path) -> "Tls":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail.test")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
            )
            .sign(key, hashes.SHA256())
        )
        pem = folder / "mail.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(pem)
        return cls(server, ssl.create_default_context(cafile=pem))
