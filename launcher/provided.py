"""Settings that the launcher provides when they are not set, and the processes' environment.

Processes get all settings as environment variables. Only the launcher knows that a database is
embedded or that a secret was generated.
"""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh.settings import MeshSettings

PREFIX = "BOXOFFICE_"
_EMBEDDED = (
    "URL of the {} database, e.g. postgresql+psycopg://user:password@host/{}. Unset: embedded."
)
_GENERATED = "{} Unset: generated and stored in the state folder."


class Provided(BaseSettings):
    """The launcher provides a value for each setting that is None."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", env_ignore_empty=True, frozen=True
    )

    auth_database_url: SecretStr | None = Field(
        None, description=_EMBEDDED.format("auth_svc", "auth")
    )
    booking_database_url: SecretStr | None = Field(
        None, description=_EMBEDDED.format("booking_svc", "booking")
    )
    stock_database_url: SecretStr | None = Field(
        None, description=_EMBEDDED.format("stock_svc", "stock")
    )
    payment_database_url: SecretStr | None = Field(
        None, description=_EMBEDDED.format("payment_svc", "payment")
    )
    sandbox_webhook_secret: SecretStr | None = Field(
        None, description=_GENERATED.format("Key that signs the sandbox provider's webhooks.")
    )
    password_pepper: SecretStr | None = Field(
        None,
        description=_GENERATED.format(
            "HMAC key for passwords; without it no stored password is valid."
        ),
    )
    page_token_secret: SecretStr | None = Field(
        None, description=_GENERATED.format("Key that signs page tokens.")
    )
    webhook_secret_keys: SecretStr | None = Field(
        None, description=_GENERATED.format("Keys that encrypt the secrets of webhook endpoints.")
    )
    queue_secret_keys: SecretStr | None = Field(
        None, description=_GENERATED.format("Keys that sign tickets of waiting rooms.")
    )

    def database_url(self, service: str) -> str | None:
        """The configured URL of a service's database; None for an embedded one."""
        return _revealed(getattr(self, f"{database(service)}_database_url"))


def database(service: str) -> str:
    """Name of a service's database, e.g. `stock` of stock_svc."""
    return service.removesuffix("_svc")


def environment(settings: MeshSettings, values: Mapping[str, str]) -> dict[str, str]:
    """The processes' environment: this process's, then the settings, then `values`."""
    own = {
        PREFIX + name.upper(): text
        for name in type(settings).model_fields
        if (text := _text(getattr(settings, name))) is not None
    }
    # Unbuffered, so that a process's last output before a crash is in its log.
    return {**os.environ, "PYTHONUNBUFFERED": "1", **own, **values}


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
