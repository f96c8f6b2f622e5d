"""Settings of auth_svc."""

import hashlib
import hmac
from datetime import timedelta
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from mesh.settings import MeshSettings

_MIN_SECRET_LENGTH = 32
_MIN_PRODUCTION_COST = 10
# The services keep the key set for 60 s, the gateway for 10 s; auth_svc looks every 5 s.
_MIN_PRODUCTION_PUBLISH_SECONDS = 75


class Settings(MeshSettings):
    auth_database_url: SecretStr | None = Field(
        None, description="auth_svc's PostgreSQL in place of the embedded one."
    )
    admin_registration_secret: SecretStr | None = Field(
        None, description="Lets admins sign up, 32 characters or more; off without it."
    )
    access_token_ttl_seconds: int = Field(
        900, ge=60, le=86_400, description="Life of an access token."
    )
    refresh_token_ttl_days: int = Field(
        7, ge=1, le=30, description="Life of a refresh token that is not used."
    )
    access_token_keys: Path | None = Field(
        None,
        description="Folder with the keys that sign access tokens, in place of keys in the state"
        " folder; all processes of auth_svc share it.",
    )
    key_publish_seconds: int = Field(
        150,
        ge=0,
        le=86_400,
        description="A new key is published so long before it signs: longer than anybody keeps"
        " the key set.",
    )
    password_cost: int = Field(
        12, ge=4, le=16, description="bcrypt cost; below 10 in development only."
    )
    password_reset_url: str = Field(
        "http://localhost:3000/reset-password",
        description="Page that takes a new password; the mail's link adds #token=… to it.",
    )
    password_pepper: SecretStr | None = Field(
        None,
        description="Key of the HMAC over passwords, 32 characters or more; `make up` makes one.",
    )

    @model_validator(mode="after")
    def _refuse_what_is_weak(self) -> Self:
        _refuse_short("BOXOFFICE_ADMIN_REGISTRATION_SECRET", self.admin_registration_secret)
        _refuse_short("BOXOFFICE_PASSWORD_PEPPER", self.password_pepper)
        if not self.is_development and self.password_cost < _MIN_PRODUCTION_COST:
            raise ValueError(
                f"BOXOFFICE_PASSWORD_COST below {_MIN_PRODUCTION_COST} is for development only"
            )
        if not self.is_development and self.key_publish_seconds < _MIN_PRODUCTION_PUBLISH_SECONDS:
            raise ValueError(
                f"BOXOFFICE_KEY_PUBLISH_SECONDS below {_MIN_PRODUCTION_PUBLISH_SECONDS}"
                " is for development only"
            )
        return self

    def needs(self) -> tuple[str, ...]:
        return ("auth_database_url", "password_pepper")

    @property
    def keys_folder(self) -> Path:
        return self.access_token_keys or self.home / "keys"

    @property
    def access_lifetime(self) -> timedelta:
        return timedelta(seconds=self.access_token_ttl_seconds)

    @property
    def database_url(self) -> str:
        return self.required("auth_database_url")

    @property
    def pepper(self) -> bytes:
        return self.required("password_pepper").encode()

    @property
    def refresh_key(self) -> bytes:
        """Derives refresh tokens from those before; a key of its own, drawn from the pepper."""
        return hmac.digest(self.pepper, b"boxoffice refresh tokens", hashlib.sha256)

    @property
    def idempotency_secret(self) -> bytes:
        """Hides what was asked under an idempotency key."""
        return hmac.digest(self.pepper, b"boxoffice idempotency", hashlib.sha256)

    @property
    def throttle_key(self) -> bytes:
        """Hides whose attempts are counted."""
        return hmac.digest(self.pepper, b"boxoffice login throttle", hashlib.sha256)


def _refuse_short(name: str, secret: SecretStr | None) -> None:
    if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET_LENGTH:
        raise ValueError(f"{name} must have {_MIN_SECRET_LENGTH} characters or more")
