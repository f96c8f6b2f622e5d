"""A sample of each mail of auth_svc, for `make mails`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from auth_svc.accounts import Role, User
from auth_svc.mailing import render
from mesh.mail.templates import Rendered

_TIME = datetime(2030, 5, 2, 9, 12, tzinfo=UTC)
_USER = User(
    user_id=UUID("0197c2a4-5d1e-7b3f-9a60-3f2c8e1d4b77"),
    email="mira@example.com",
    full_name="Mira Rao",
    phone="",
    address="",
    role=Role.CUSTOMER,
    is_active=True,
    create_time=_TIME,
    update_time=_TIME,
)
_LINK = {"url": "https://tickets.example/page#token=…", "expire_time": "3 May 2030, 09:12 UTC"}


def samples() -> Iterator[tuple[str, Rendered]]:
    """Names and mails."""
    values = {
        "email_verification": _LINK,
        "email_change": _LINK,
        "email_change_notice": {"time": "2 May 2030, 09:12 UTC"},
        "email_changed": {"change_time": "2 May 2030, 09:12 UTC"},
        "password_reset": _LINK,
        "password_changed": {"change_time": "2 May 2030, 09:12 UTC"},
    }
    for name, given in values.items():
        yield name.replace("_", " "), render(name, _USER, **given)
