"""Settings that the launcher fills in when they are not set, and the environment it makes of them.

A process of the mesh is told everything by its environment; only the launcher knows
that a database is embedded or a secret generated.
"""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh.settings import MeshSettings

PREFIX = "BOXOFFICE_"
_EMBEDDED = (
    "URL of the {} database, e.g. postgresql+psycopg://user:password@host/{}; embedded when unset."
)
_GENERATED = "{} Generated and kept in the state folder when unset."


class Provided(BaseSettings):
    """None means that the launcher provides it."""

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
        None, description=_GENERATED.format("Signs the sandbox provider's webhooks.")
    )
    password_pepper: SecretStr | None = Field(
        None, description=_GENERATED.format("Mixed into every password; passwords die with it.")
    )
    page_token_secret: SecretStr | None = Field(
        None, description=_GENERATED.format("Signs the page tokens of all lists.")
    )
    webhook_secret_keys: SecretStr | None = Field(
        None, description=_GENERATED.format("Seals the webhook endpoints' secrets.")
    )

    def database_url(self, service: str) -> str | None:
        """The URL set for a service's database."""
        return _revealed(getattr(self, f"{database(service)}_database_url"))


def database(service: str) -> str:
    """Name of a service's database, e.g. `stock` of stock_svc."""
    return service.removesuffix("_svc")


def environment(settings: MeshSettings, values: Mapping[str, str]) -> dict[str, str]:
    """The environment of the mesh's processes: ours, the settings, and `values` by variable."""
    own = {
        PREFIX + name.upper(): text
        for name in type(settings).model_fields
        if (text := _text(getattr(settings, name))) is not None
    }
    # Unbuffered, so that what a process printed before it died is in its log.
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
