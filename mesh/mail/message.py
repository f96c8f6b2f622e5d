"""A mail in its MIME form (RFC 5322, 2045–2047): text and HTML, headers in any language."""

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from mesh.mail.queue import QueuedMail
from mesh.mail_settings import address_of

# 7bit: quoted-printable or base64 for all else, so that no server has to speak 8BITMIME.
_POLICY = SMTP.clone(cte_type="7bit")


class UnsendableError(ValueError):
    """No server could ever take this mail, e.g. because its address is none."""


def build(mail: QueuedMail, *, sender: Address) -> EmailMessage:
    """The message, the same each time the mail is sent. Raises UnsendableError."""
    try:
        message = EmailMessage(policy=_POLICY)
        message["From"] = sender
        to = address_of(mail.to)
        message["To"] = Address("", to.username, to.domain)
        # A name with a line break in it must not begin a header of its own.
        message["Subject"] = " ".join(mail.subject.split())
        message["Date"] = format_datetime(mail.create_time)
        # The same at each attempt, so that a mail sent twice is shown once.
        message["Message-ID"] = f"<{mail.mail_id}@{sender.domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text, charset="utf-8")
        message.add_alternative(mail.html, subtype="html", charset="utf-8")
    except ValueError as error:
        # The text of the error may quote the address.
        raise UnsendableError(type(error).__name__) from None
    return message
