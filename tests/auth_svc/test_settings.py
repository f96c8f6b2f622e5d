"""auth_svc refuses to start with insecure or missing settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from auth_svc.settings import Settings
from testing.start_errors import error_at_start

SECRET = "0123456789abcdef0123456789abcdef"


def test_the_defaults_are_those_of_the_requirements() -> None:
    # Not of an instance: the machine's environment may contain other values.
    fields = Settings.model_fields
    assert fields["access_token_ttl_seconds"].default == 900
    assert fields["refresh_token_ttl_days"].default == 7
    assert fields["password_cost"].default == 12
    assert fields["admin_registration_secret"].default is None


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", ["admin_registration_secret", "password_pepper"])
def test_a_short_secret_is_refused_and_not_repeated(name: str) -> None:
    too_short: dict[str, Any] = {name: SECRET[:31]}
    with pytest.raises(ValidationError, match=f"BOXOFFICE_{name.upper()} must have 32") as refused:
        Settings(**too_short)
    assert SECRET[:4] not in str(refused.value)
    long_enough: dict[str, Any] = {name: SECRET}
    Settings(**long_enough)


def test_refresh_tokens_have_a_key_of_their_own_that_survives_a_restart() -> None:
    pepper: dict[str, Any] = {"password_pepper": SECRET}
    key = Settings(**pepper).refresh_key
    assert key == Settings(**pepper).refresh_key
    assert len(key) == 32
    assert key != Settings(**pepper).pepper
    other: dict[str, Any] = {"password_pepper": SECRET[::-1]}
    assert key != Settings(**other).refresh_key


@pytest.mark.parametrize(("environment", "cost"), [("production", 9), ("development", 3)])
def test_a_cheap_hash_is_for_development_only(environment: Any, cost: int) -> None:
    with pytest.raises(ValidationError, match=r"password_cost|BOXOFFICE_PASSWORD_COST"):
        Settings(environment=environment, password_cost=cost)
    Settings(environment="production", password_cost=10)
    Settings(environment="development", password_cost=4)


def test_a_publication_shorter_than_the_caches_is_for_development_only() -> None:
    with pytest.raises(ValidationError, match="BOXOFFICE_KEY_PUBLISH_SECONDS below 75"):
        Settings(environment="production", key_publish_seconds=74)
    Settings(environment="production", key_publish_seconds=75)
    Settings(environment="development", key_publish_seconds=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AUTH_DATABASE_URL": ""}, "BOXOFFICE_AUTH_DATABASE_URL is not set"),
        ({"PASSWORD_PEPPER": ""}, "BOXOFFICE_PASSWORD_PEPPER is not set"),
        (
            {"ADMIN_REGISTRATION_SECRET": "guessable"},
            "BOXOFFICE_ADMIN_REGISTRATION_SECRET must have 32 characters",
        ),
    ],
)
def test_the_missing_setting_is_named_at_start(changes: dict[str, str], message: str) -> None:
    variables = {
        "AUTH_DATABASE_URL": "postgresql+psycopg://nowhere/none",
        "PASSWORD_PEPPER": SECRET,
        **changes,
    }
    error = error_at_start("auth_svc", **variables)
    assert message in error
    assert "guessable" not in error
