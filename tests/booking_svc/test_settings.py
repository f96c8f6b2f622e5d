"""booking_svc refuses to start with insecure settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from booking_svc.settings import Settings

KEY = "a key of thirty-two characters or more"


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.mark.parametrize("keys", ["short", f"{KEY},short", ",", " "])
def test_short_keys_are_refused(keys: str) -> None:
    with pytest.raises(ValidationError, match="WEBHOOK_SECRET_KEYS"):
        settings(webhook_secret_keys=keys)


def test_several_keys_during_a_rotation() -> None:
    assert settings(webhook_secret_keys=f"{KEY}, {KEY[::-1]}").webhook_keys == (KEY, KEY[::-1])


def test_a_key_is_required() -> None:
    assert "webhook_secret_keys" in settings().needs()
    with pytest.raises(ValueError, match="BOXOFFICE_WEBHOOK_SECRET_KEYS is not set"):
        settings().required("webhook_secret_keys")


def test_loopback_is_for_development() -> None:
    assert settings().webhook_allow_loopback
    assert not settings(webhook_allow_loopback=False).webhook_allow_loopback
    production = {"environment": "production", "webhook_secret_keys": KEY}
    assert not settings(**production).webhook_allow_loopback
    with pytest.raises(ValidationError, match="development only"):
        settings(environment="production", webhook_allow_loopback=True)
