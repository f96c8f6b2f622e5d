"""Builds the MIME message of a mail (RFC 5322, 2045–2047) with a text and an HTML part."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from mesh.mail.queue import QueuedMail
from mesh.mail_settings import address_of

# 7bit: other characters become quoted-printable or base64, so no server needs 8BITMIME.
_POLICY = SMTP.clone(cte_type="7bit")


class UnsendableError(ValueError):
    """No server can accept this mail, e.g. because its address is invalid."""


def build(mail: QueuedMail, *, sender: Address) -> EmailMessage:
    """Builds the message, identical for each attempt. Raises UnsendableError."""
    try:
        message = EmailMessage(policy=_POLICY)
        message["From"] = sender
        to = address_of(mail.to)
        message["To"] = _recipient(to)
        # Line breaks in names must not start a new header.
        message["Subject"] = " ".join(mail.subject.split())
        message["Date"] = format_datetime(mail.create_time)
        # The same for each attempt, so that mail programs show a repeated mail once.
        message["Message-ID"] = f"<{mail.mail_id}@{sender.domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text, charset="utf-8")
        message.add_alternative(mail.html, subtype="html", charset="utf-8")
    except ValueError as error:
        # The error's text may quote the address.
        raise UnsendableError(type(error).__name__) from None
    return message


def _recipient(to: Address) -> Address | str:
    """The recipient for the header: RFC 5322 quotes dots at an end and two dots in a row."""
    if all(to.username.split(".")):
        return Address("", to.username, to.domain)
    return f'"{to.username}"@{to.domain}'
