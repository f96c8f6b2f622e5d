"""Password reset: the mail with the link, also after an outage of the mail server."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from auth_svc.__main__ import open_service
from auth_svc.settings import Settings
from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from mesh.ids import new_id
from testing.network import Network
from testing.running_mesh import PASSWORD, Api, RunningMesh, reason, until, violated_fields
from testing.smtp_server import MailServer, mail_server
from tests.auth_svc.conftest import GOOD_PASSWORD, PEPPER

REQUEST = "/api/v1/auth/reset-password"
CONFIRM = f"{REQUEST}/confirm"
NEW_PASSWORD = "Quiet-Harbour-58"
SUBJECT = "Choose a new password"
LINK = re.compile(r"#token=([\w-]{43})")


def token_in(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    assert body is not None
    link = LINK.search(body.get_content())
    assert link is not None
    return link[1]


def mailed_token(mesh: RunningMesh, email: str) -> str:
    """The token in the newest mail to an address, from the files of a mesh without SMTP."""

    def newest() -> str | None:
        for path in sorted((mesh.home / "mails").glob("*.eml"), reverse=True):
            mail = message_from_bytes(path.read_bytes(), policy=default)
            assert isinstance(mail, EmailMessage)
            if (mail["To"], mail["Subject"]) == (email, SUBJECT):
                return token_in(mail, "plain")
        return None

    # Background loops queue and send the mail, which takes time on a slow machine.
    return until(newest, "no mail arrived", seconds=60)


def test_a_forgotten_password_is_reset(mesh: RunningMesh, customer: Api) -> None:
    email = customer.session["user"]["email"]
    requested = customer.post(REQUEST, {"email": email.upper()})
    assert requested.status_code == 200, requested.text
    token = mailed_token(mesh, email)
    changed = customer.post(CONFIRM, {"token": token, "newPassword": NEW_PASSWORD})
    assert changed.status_code == 200, changed.text
    assert changed.json().keys() == {"message", "changeTime"}
    customer.sign_in(email, NEW_PASSWORD)
    old = customer.post("/api/v1/auth/login", {"email": email, "password": PASSWORD})
    assert (old.status_code, reason(old)) == (401, "INVALID_CREDENTIALS")
    repeated = customer.post(CONFIRM, {"token": token, "newPassword": PASSWORD})
    assert (repeated.status_code, reason(repeated)) == (401, "TOKEN_INVALID")
    ended = customer.post(
        "/api/v1/auth/refresh", {"refreshToken": customer.session["refreshToken"]}
    )
    assert (ended.status_code, reason(ended)) == (401, "TOKEN_INVALID")


def test_an_unknown_address_gets_the_same_answer(api: Api, customer: Api) -> None:
    known = api.post(REQUEST, {"email": customer.session["user"]["email"]})
    unknown = api.post(REQUEST, {"email": "nobody-at-all@example.com"})
    assert (known.status_code, known.json()) == (unknown.status_code, unknown.json())


@pytest.mark.parametrize("has_account", [True, False])
def test_a_repeated_request_with_a_key_gets_the_same_answer(
    api: Api, customer: Api, has_account: bool
) -> None:
    """Keys do not reveal which accounts exist."""
    email = customer.session["user"]["email"] if has_account else f"{new_id()}@example.com"
    answers = [api.post(REQUEST, {"email": email}, idempotency_key="ask") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    # The same key for another address is a different key.
    assert api.post(REQUEST, {"email": f"x{email}"}, idempotency_key="ask").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (REQUEST, {}, {"email"}),
        (REQUEST, {"email": "mira"}, {"email"}),
        (REQUEST, {"email": "mira\x00@example.com"}, {"email"}),
        (REQUEST, {"email": f"{'m' * 250}@example.com"}, {"email"}),
        (CONFIRM, {}, {"token", "newPassword"}),
        (CONFIRM, {"token": "x" * 1025, "newPassword": NEW_PASSWORD}, {"token"}),
    ],
)
def test_invalid_input_names_its_fields(api: Api, path: str, body: Any, fields: set[str]) -> None:
    refused = api.post(path, body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == fields


@pytest.fixture
def smtp() -> MailServer:
    return MailServer()


@pytest.fixture
async def auth(
    tmp_path: Path, new_database: Callable[[str], str], smtp: MailServer
) -> AsyncIterator[AuthServiceStub]:
    """auth_svc with its background loops; the mail server of its settings is not running yet."""
    async with mail_server(at=smtp):
        pass  # chooses a free port
    settings = Settings(
        home=tmp_path,
        auth_database_url=new_database("auth_svc"),
        password_cost=4,
        password_pepper=PEPPER.decode(),
        smtp_url=f"smtp://127.0.0.1:{smtp.port}",
        email_verification="off",
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as service,
        network.serve("auth_svc", service) as port,
        network.plain_channel("operator", "auth_svc", port) as channel,
    ):
        loops = [asyncio.ensure_future(loop()) for loop in service.loops]
        yield AuthServiceStub(channel)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("down_seconds", [0, 3])
async def test_no_mail_is_lost_while_the_mail_server_is_down(
    auth: AuthServiceStub, smtp: MailServer, down_seconds: float, is_long: bool
) -> None:
    """Down for three seconds, or with --long for a minute."""
    if is_long:
        down_seconds *= 20
    await auth.Register(
        auth_service_pb2.RegisterRequest(
            email="mira@example.com", password=GOOD_PASSWORD, full_name="Mira Rao"
        )
    )
    request = auth_service_pb2.RequestPasswordResetRequest(email="mira@example.com")
    await auth.RequestPasswordReset(request)
    # The duration of the outage is part of the test.
    await asyncio.sleep(down_seconds)
    async with mail_server(at=smtp), asyncio.timeout(100):
        while not smtp.mails:
            await asyncio.sleep(0.05)
    [mail] = smtp.mails
    assert (mail["To"], mail["Subject"]) == ("mira@example.com", SUBJECT)
    token = token_in(mail, "html")
    assert token_in(mail, "plain") == token
    change = auth_service_pb2.ResetPasswordRequest(token=token, new_password=NEW_PASSWORD)
    await auth.ResetPassword(change)
    await auth.Login(auth_service_pb2.LoginRequest(email="mira@example.com", password=NEW_PASSWORD))
