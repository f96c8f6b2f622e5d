"""booking_svc refuses to start with insecure settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from booking_svc.settings import Settings

KEY = "a key of thirty-two characters or more"


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


KEYS = ("webhook_secret_keys", "queue_secret_keys")


@pytest.mark.parametrize("keys", ["short", f"{KEY},short", ",", " "])
@pytest.mark.parametrize("name", KEYS)
def test_short_keys_are_refused(name: str, keys: str) -> None:
    with pytest.raises(ValidationError, match=f"BOXOFFICE_{name.upper()}"):
        settings(**{name: keys})


def test_several_keys_during_a_rotation() -> None:
    assert settings(webhook_secret_keys=f"{KEY}, {KEY[::-1]}").webhook_keys == (KEY, KEY[::-1])
    assert settings(queue_secret_keys=f"{KEY}, {KEY[::-1]}").queue_keys == (KEY, KEY[::-1])


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_required(name: str) -> None:
    assert name in settings().needs()
    with pytest.raises(ValueError, match=f"BOXOFFICE_{name.upper()} is not set"):
        settings().required(name)


def test_a_captcha_needs_its_url_and_its_secret() -> None:
    url = "https://captcha.example.com/siteverify"
    assert settings(captcha_verify_url=url, captcha_secret="s").captcha_verify_url == url
    for half in ({"captcha_verify_url": url}, {"captcha_secret": "s"}):
        with pytest.raises(ValidationError, match="are set together"):
            settings(**half)


def test_loopback_is_for_development() -> None:
    assert settings().webhook_allow_loopback
    assert not settings(webhook_allow_loopback=False).webhook_allow_loopback
    production = {"environment": "production", "webhook_secret_keys": KEY}
    assert not settings(**production).webhook_allow_loopback
    with pytest.raises(ValidationError, match="development only"):
        settings(environment="production", webhook_allow_loopback=True)
