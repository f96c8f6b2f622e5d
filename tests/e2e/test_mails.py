"""Mails about bookings, written to files because the mesh has no mail server."""

import time
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

from testing.running_mesh import Api, RunningMesh, items


def test_a_confirmed_booking_is_mailed(mesh: RunningMesh, admin: Api, customer: Api) -> None:
    event = admin.create_event()
    booking = customer.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    payment_id = booking["payment"]["paymentId"]
    customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    mail = wait_for_mail(mesh.home / "mails", to=customer.session["user"]["email"])
    assert mail["Subject"].startswith(f"Confirmed: {event['name']}")
    text = mail.get_body(("plain",))
    assert text is not None
    assert "Hello Mira Rao," in text.get_content()
    assert "₹3,000.00" in text.get_content()
    assert booking["bookingId"] in text.get_content()


def wait_for_mail(folder: Path, *, to: str, subject: str = "", seconds: float = 60) -> EmailMessage:
    """The first mail to an address after that of the sign-up, whose subject begins like this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in sorted(folder.glob("*.eml")):
            mail = message_from_bytes(path.read_bytes(), policy=default)
            assert isinstance(mail, EmailMessage)
            is_sign_up = mail["Subject"] == "Confirm your e-mail address"
            if mail["To"] == to and mail["Subject"].startswith(subject) and not is_sign_up:
                return mail
        time.sleep(0.1)
    raise AssertionError(f"no mail to {to} in {folder}")
