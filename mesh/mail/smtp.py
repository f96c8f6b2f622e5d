"""The SMTP transport (RFC 5321) with STARTTLS (RFC 3207) or implicit TLS (RFC 8314).

smtplib blocks, so each batch runs in a thread over one connection. A batch that exceeds its
time limit is ended by closing that connection.
"""

import asyncio
import logging
import smtplib
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import EmailMessage

from mesh.mail.transport import Outcome, Verdict
from mesh.mail_settings import SmtpServer

_log = logging.getLogger(__name__)

_STEP_TIMEOUT_SECONDS = 10.0
# Shorter than the lease of the mails, so that no other process sends them again.
_BATCH_TIMEOUT_SECONDS = 90.0

# RFC 1870: the one reply to MAIL FROM that concerns the message and not the sender.
_TOO_LARGE = 552

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class InsecureError(smtplib.SMTPException):
    """The server offers no encryption, but the settings or the password require it."""


class SmtpTransport:
    """Sends batches of mails, one connection per batch."""

    def __init__(
        self,
        server: SmtpServer,
        *,
        tls: ssl.SSLContext | None = None,
        step_timeout_seconds: float = _STEP_TIMEOUT_SECONDS,
        batch_timeout_seconds: float = _BATCH_TIMEOUT_SECONDS,
    ) -> None:
        self._server = server
        # The system's certificate authorities; SSL_CERT_FILE adds a private one.
        self._tls = tls or ssl.create_default_context()
        self._step_timeout = step_timeout_seconds
        self._batch_timeout = batch_timeout_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smtp")

    async def send(self, messages: Sequence[EmailMessage]) -> Sequence[Outcome]:
        batch = _Batch(self._server, self._tls, self._step_timeout, messages)
        running = asyncio.get_running_loop().run_in_executor(self._thread, batch.run)
        try:
            async with asyncio.timeout(self._batch_timeout):
                await asyncio.shield(running)
        except TimeoutError:
            batch.cut()
            await running
        except asyncio.CancelledError:
            batch.cut()
            raise
        return batch.outcomes


class _Batch:
    """One batch over one connection. `run` blocks a thread; `cut` is called from another."""

    def __init__(
        self,
        server: SmtpServer,
        tls: ssl.SSLContext,
        timeout: float,
        messages: Sequence[EmailMessage],
    ) -> None:
        self._server = server
        self._tls = tls
        self._timeout = timeout
        self._messages = messages
        self._client: smtplib.SMTP | None = None
        self._is_cut = False
        self.outcomes: list[Outcome] = []

    def run(self) -> None:
        """Fills `outcomes`, one per message; messages that were not sent are UNREACHABLE."""
        try:
            self._client = client = self._connect()
            for message in self._messages:
                if self._is_cut:
                    raise TimeoutError
                if client.sock is None:  # closed, e.g. after a 421 reply
                    raise smtplib.SMTPServerDisconnected
                self.outcomes.append(_send(client, message))
        except (OSError, smtplib.SMTPException) as error:
            answer = _answer(error)
            _log.warning("the mail server accepted no mail", extra={"answer": answer})
            rest = len(self._messages) - len(self.outcomes)
            self.outcomes += [Outcome(Verdict.UNREACHABLE, answer)] * rest
        finally:
            self._close()

    def cut(self) -> None:
        """Shuts the connection down, so that the thread's current operation fails at once."""
        self._is_cut = True
        if self._client is not None and self._client.sock is not None:
            with suppress(OSError):
                self._client.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> smtplib.SMTP:
        server = self._server
        client: smtplib.SMTP
        if server.is_tls:
            client = smtplib.SMTP_SSL(timeout=self._timeout, context=self._tls)
        else:
            client = smtplib.SMTP(timeout=self._timeout)
        # Connected after `_client` is set, so that `cut` can close the socket while the client
        # waits for the greeting. The constructor would have set the name that TLS verifies.
        client._host = server.host  # type: ignore[attr-defined]
        self._client = client
        client.connect(server.host, server.port)
        client.ehlo_or_helo_if_needed()
        is_encrypted = server.is_tls
        if not is_encrypted and server.starttls is not False:
            is_encrypted = self._start_tls(client)
        if server.user is not None:
            # An attacker on the path could remove the STARTTLS offer and read the password.
            if not is_encrypted and server.starttls is None and server.host not in _LOOPBACK:
                raise InsecureError
            client.login(server.user, server.password)
        return client

    def _start_tls(self, client: smtplib.SMTP) -> bool:
        if client.has_extn("starttls"):
            client.starttls(context=self._tls)
            client.ehlo()
            return True
        if self._server.starttls:
            raise InsecureError
        return False

    def _close(self) -> None:
        if self._client is not None:
            if not self._is_cut:
                with suppress(OSError, smtplib.SMTPException):
                    self._client.quit()
            self._client.close()


def _send(client: smtplib.SMTP, message: EmailMessage) -> Outcome:
    """Sends one message. Raises errors that concern the server, not this message."""
    try:
        client.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        [(code, _)] = error.recipients.values()
        return _refusal(code)
    except smtplib.SMTPDataError as error:
        return _refusal(error.smtp_code)
    except smtplib.SMTPSenderRefused as error:
        if error.smtp_code != _TOO_LARGE:
            raise
        return _refusal(error.smtp_code)
    except (smtplib.SMTPNotSupportedError, UnicodeError):
        # The address has non-ASCII characters and the server lacks SMTPUTF8 (RFC 6531).
        return Outcome(Verdict.REFUSED, "SMTPUTF8")
    except smtplib.SMTPServerDisconnected:
        # This mail may be the cause: only it counts as attempted, not the rest of the batch.
        return Outcome(Verdict.DEFERRED, "SMTPServerDisconnected")
    return Outcome(Verdict.SENT, "250")


def _refusal(code: int) -> Outcome:
    # RFC 5321, 4.2.1: 5yz replies are permanent, 4yz transient.
    verdict = Verdict.REFUSED if 500 <= code <= 599 else Verdict.DEFERRED
    return Outcome(verdict, str(code))


def _answer(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{type(error).__name__} {error.smtp_code}"
    return type(error).__name__
