"""The SMTP transport with a real server: encryption, login, refusals, and a server that hangs."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from uuid import uuid4

import pytest

from mesh.mail.message import UnsendableError, build
from mesh.mail.queue import QueuedMail
from mesh.mail.smtp import SmtpTransport
from mesh.mail.transport import Outcome, Verdict
from mesh.mail_settings import SmtpServer, address_of
from testing.smtp_server import PASSWORD, USER, Tls, mail_server

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FROM = address_of("Boxoffice <noreply@example.com>")
ACCOUNT = "box%20office:p%3A%40ss%2Fword@"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls.new(tmp_path_factory.mktemp("tls"))


def a_mail(to: str = "mira@example.org", subject: str = "Hello", **changes: str) -> QueuedMail:
    texts = {"text": "Hello Mira\n", "html": "<p>Hello Mira</p>\n", **changes}
    return QueuedMail(
        uuid4(),
        "key",
        to,
        subject,
        attempt=1,
        create_time=NOW,
        expire_time=None,
        lease_end=NOW,
        **texts,
    )


def a_message(to: str = "mira@example.org", subject: str = "Hello", **changes: str) -> EmailMessage:
    return build(a_mail(to, subject, **changes), sender=FROM)


async def send(url: str, *messages: EmailMessage, tls: Tls | None = None) -> Sequence[Outcome]:
    transport = SmtpTransport(SmtpServer.parse(url), tls=tls.client if tls else None)
    return await transport.send(messages or [a_message()])


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{outcome.verdict.name} {outcome.answer}" for outcome in outcomes]


async def test_a_mail_arrives_as_text_and_html_in_any_script() -> None:
    message = a_message(
        subject="Monsoon Nights – मानसून 🎭", text="₹3,000.00 für Zoë\n", html="<b>₹3,000.00</b>\n"
    )
    async with mail_server() as server:
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", message)
    assert verdicts(outcomes) == ["SENT 250"]
    [mail] = server.mails
    assert server.recipients == ["mira@example.org"]
    assert mail["Subject"] == "Monsoon Nights – मानसून 🎭"
    assert mail["From"] == "Boxoffice <noreply@example.com>"
    assert mail["To"] == "mira@example.org"
    assert mail["Message-ID"] == message["Message-ID"]
    assert mail["Date"].datetime == NOW
    assert mail.get_content_type() == "multipart/alternative"
    text, html = mail.iter_parts()
    assert (text.get_content_type(), text.get_content()) == ("text/plain", "₹3,000.00 für Zoë\r\n")
    assert (html.get_content_type(), html.get_content()) == ("text/html", "<b>₹3,000.00</b>\r\n")
    assert all(byte < 128 for byte in message.as_bytes())


async def test_a_line_break_in_a_name_does_not_start_a_header() -> None:
    message = a_message(subject="Night\r\nBcc: all@example.org")
    assert message["Bcc"] is None
    assert message["Subject"] == "Night Bcc: all@example.org"


@pytest.mark.parametrize(
    "to", ["", "mira", "mira@", "@example.org", "a@b\r\nBcc: c@d", "mira@exa mple.org\x00"]
)
def test_an_invalid_address_is_refused_without_quoting_it(to: str) -> None:
    with pytest.raises(UnsendableError) as refused:
        a_message(to)
    assert "exam" not in str(refused.value)
    assert "mira" not in str(refused.value)


async def test_a_domain_in_another_script_is_sent_in_its_ascii_form() -> None:
    async with mail_server() as server:
        await send(f"smtp://127.0.0.1:{server.port}", a_message("mira@bücher.example"))
    assert server.recipients == ["mira@xn--bcher-kva.example"]


def test_dots_that_need_quotes_are_quoted_in_the_header() -> None:
    message = a_message("a..b@example.org")
    assert b'To: "a..b"@example.org\r\n' in message.as_bytes()
    assert a_message("o'brien@example.org")["To"] == "o'brien@example.org"


async def test_a_non_ascii_address_requires_a_server_with_smtputf8() -> None:
    message = a_message("मीरा@example.org")
    async with mail_server(enable_SMTPUTF8=True) as server:
        assert verdicts(await send(f"smtp://127.0.0.1:{server.port}", message)) == ["SENT 250"]
    assert server.recipients == ["मीरा@example.org"]
    async with mail_server() as server:
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", message)
    assert verdicts(outcomes) == ["REFUSED SMTPUTF8"]


async def test_starttls_is_used_when_the_server_offers_it(tls: Tls) -> None:
    async with mail_server(tls=tls.server) as server:
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", tls=tls)
    assert verdicts(outcomes) == ["SENT 250"]
    assert server.encrypted == [True]


async def test_required_starttls_without_an_offer_sends_nothing(tls: Tls) -> None:
    async with mail_server() as server:
        outcomes = await send(f"smtp://127.0.0.1:{server.port}?starttls=true", tls=tls)
    assert verdicts(outcomes) == ["UNREACHABLE InsecureError"]
    assert server.mails == []


async def test_starttls_can_be_turned_off(tls: Tls) -> None:
    async with mail_server(tls=tls.server) as server:
        await send(f"smtp://127.0.0.1:{server.port}?starttls=false")
    assert server.encrypted == [False]


async def test_an_untrusted_certificate_sends_nothing(tls: Tls) -> None:
    async with mail_server(tls=tls.server) as server:
        outcomes = await send(f"smtp://127.0.0.1:{server.port}")
    assert verdicts(outcomes) == ["UNREACHABLE SSLCertVerificationError"]
    assert server.mails == []


async def test_smtps_is_encrypted_from_the_start(tls: Tls) -> None:
    async with mail_server(tls=tls.server, over_tls=True) as server:
        outcomes = await send(f"smtps://127.0.0.1:{server.port}", tls=tls)
    assert verdicts(outcomes) == ["SENT 250"]
    assert server.encrypted == [True]


async def test_with_a_user_the_transport_logs_in(tls: Tls) -> None:
    async with mail_server(tls=tls.server, auth_required=True) as server:
        outcomes = await send(f"smtp://{ACCOUNT}127.0.0.1:{server.port}?starttls=true", tls=tls)
    assert verdicts(outcomes) == ["SENT 250"]
    assert server.logins == 1
    assert (USER, PASSWORD) == ("box office", "p:@ss/word")


async def test_without_a_user_the_transport_does_not_log_in(tls: Tls) -> None:
    async with mail_server(tls=tls.server) as server:
        await send(f"smtp://127.0.0.1:{server.port}", tls=tls)
    assert server.logins == 0


async def test_a_wrong_password_does_not_count_against_the_mail(tls: Tls) -> None:
    async with mail_server(tls=tls.server) as server:
        outcomes = await send(f"smtp://mira:wrong@127.0.0.1:{server.port}", tls=tls)
    assert verdicts(outcomes) == ["UNREACHABLE SMTPAuthenticationError 535"]


async def test_each_mail_of_a_batch_has_its_own_outcome_over_one_connection() -> None:
    to = [
        "one@example.org",
        "gone@example.org",
        "full@example.org",
        "spam@example.org",
        "two@example.org",
    ]
    async with mail_server() as server:
        server.answers = {
            "gone@example.org": "550 5.1.1 no such user",
            "full@example.org": "452 4.2.2 mailbox full",
            "DATA spam@example.org": "554 5.7.1 not that",
        }
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", *map(a_message, to))
    assert verdicts(outcomes) == [
        "SENT 250",
        "REFUSED 550",
        "DEFERRED 452",
        "REFUSED 554",
        "SENT 250",
    ]
    assert server.recipients == ["one@example.org", "two@example.org"]
    assert server.connections == 1


async def test_a_refused_sender_does_not_count_against_the_mails() -> None:
    async with mail_server() as server:
        server.refuses_senders_with = "550 5.7.1 who are you"
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", a_message(), a_message())
    assert verdicts(outcomes) == ["UNREACHABLE SMTPSenderRefused 550"] * 2


async def test_a_mail_on_which_the_server_disconnects_is_deferred_and_the_rest_retried() -> None:
    to = ["one@example.org", "two@example.org", "three@example.org"]
    async with mail_server() as server:
        server.hangs_up_on = "two@example.org"
        outcomes = await send(f"smtp://127.0.0.1:{server.port}", *map(a_message, to))
    assert verdicts(outcomes) == [
        "SENT 250",
        "DEFERRED SMTPServerDisconnected",
        "UNREACHABLE SMTPServerDisconnected",
    ]


async def test_a_server_that_is_down_is_unreachable() -> None:
    async with mail_server() as server:
        pass
    outcomes = await send(f"smtp://127.0.0.1:{server.port}", a_message(), a_message())
    assert verdicts(outcomes) == ["UNREACHABLE ConnectionRefusedError"] * 2


async def test_a_server_that_sends_nothing_times_out() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        transport = SmtpTransport(
            SmtpServer("127.0.0.1", port, is_tls=False, starttls=None, user=None),
            step_timeout_seconds=0.1,
        )
        assert verdicts(await transport.send([a_message()])) == [
            "UNREACHABLE SMTPServerDisconnected"
        ]


async def test_a_server_that_sends_slowly_is_ended_by_the_batch_timeout() -> None:
    """Each byte arrives in time, so only the timeout of the whole batch applies."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for byte in b"220-" + b"mail.test" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass
        finally:
            writer.close()

    dripping = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = dripping.sockets[0].getsockname()[1]
    async with dripping:
        transport = SmtpTransport(
            SmtpServer("127.0.0.1", port, is_tls=False, starttls=None, user=None),
            step_timeout_seconds=30,
            batch_timeout_seconds=0.3,
        )
        # Long before the server has sent its greeting, which takes minutes.
        async with asyncio.timeout(60):
            outcomes = await transport.send([a_message()])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNREACHABLE]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.test", SmtpServer("mail.test", 587, False, None, None)),
        ("smtp://mail.test:25", SmtpServer("mail.test", 25, False, None, None)),
        ("smtp://mail.test?starttls=true", SmtpServer("mail.test", 587, False, True, None)),
        ("smtps://mail.test", SmtpServer("mail.test", 465, True, None, None)),
        ("smtp://a:b@mail.test", SmtpServer("mail.test", 587, False, None, "a", "b")),
        ("smtp://a%40b:c%2F@mail.test", SmtpServer("mail.test", 587, False, None, "a@b", "c/")),
        ("smtp://[::1]:2525", SmtpServer("::1", 2525, False, None, None)),
    ],
)
def test_a_url_is_parsed(url: str, expected: SmtpServer) -> None:
    assert SmtpServer.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.test:587",
        "http://u:geheim@mail.test",
        "smtp://",
        "smtp://u:geheim@mail.test:x",
        "smtp://u:geheim/x@mail.test",
        "smtp://u:geheim@mail.test?startls=true",
        "smtp://u:geheim@mail.test?starttls=yes",
        "smtp://u:geheim@mail.test/inbox",
    ],
)
def test_an_invalid_url_is_refused_without_quoting_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"smtp|port|starttls") as refused:
        SmtpServer.parse(url)
    assert "geheim" not in str(refused.value)


def test_a_password_is_not_in_the_repr() -> None:
    assert "geheim" not in repr(SmtpServer.parse("smtp://u:geheim@mail.test"))


async def test_a_password_is_not_sent_unencrypted_to_another_machine() -> None:
    """An attacker on the path can remove the STARTTLS offer."""
    async with (
        mail_server(auth_require_tls=False) as near,
        mail_server(auth_require_tls=False, host="127.0.0.2") as far,
    ):
        to_loopback = await send(f"smtp://{ACCOUNT}127.0.0.1:{near.port}")
        to_other_host = await send(f"smtp://{ACCOUNT}127.0.0.2:{far.port}")
    assert verdicts(to_loopback) == ["SENT 250"]
    assert verdicts(to_other_host) == ["UNREACHABLE InsecureError"]
    assert (near.logins, far.logins, far.mails) == (1, 0, [])
