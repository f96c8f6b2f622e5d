"""Settings of auth_svc."""

import hashlib
import hmac
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from mesh.settings import MeshSettings

_MIN_SECRET_LENGTH = 32
_MIN_PRODUCTION_COST = 10
# Services cache the key set for 60 s, the gateway for 10 s; auth_svc reads the folder every 5 s.
_MIN_PRODUCTION_PUBLISH_SECONDS = 75


class Settings(MeshSettings):
    auth_database_url: SecretStr | None = Field(
        None, description="auth_svc's PostgreSQL in place of the embedded one."
    )
    admin_registration_secret: SecretStr | None = Field(
        None,
        description="Secret for admin sign-up, 32 characters or more; without it admin sign-up is off.",
    )
    access_token_ttl_seconds: int = Field(
        900, ge=60, le=86_400, description="Lifetime of an access token."
    )
    refresh_token_ttl_days: int = Field(
        7, ge=1, le=30, description="Lifetime of an unused refresh token."
    )
    access_token_keys: Path | None = Field(
        None,
        description="Folder with the keys that sign access tokens, instead of keys in the state"
        " folder; shared by all processes of auth_svc.",
    )
    key_publish_seconds: int = Field(
        150,
        ge=0,
        le=86_400,
        description="How long a new key is published before it signs: longer than any cache of the"
        " key set.",
    )
    password_cost: int = Field(
        12, ge=4, le=16, description="bcrypt cost; below 10 in development only."
    )
    password_reset_url: str = Field(
        "http://localhost:3000/reset-password",
        description="Page for entering a new password; links in mails append #token=….",
    )
    email_confirmation_url: str = Field(
        "http://localhost:3000/confirm-email",
        description="Page that confirms an e-mail address; links in mails append #token=….",
    )
    email_verification: Literal["off", "optional", "required"] = Field(
        "optional",
        description="Whether a new account's address receives a link to verify it. required: no"
        " bookings before that.",
    )
    phone_region: str = Field(
        "IN",
        pattern=r"^[A-Z]{2}$",
        description="ISO 3166 country of phone numbers that are typed without a country code.",
    )
    password_pepper: SecretStr | None = Field(
        None,
        description="Key of the HMAC over passwords, 32 characters or more; `make up` makes one.",
    )

    @model_validator(mode="after")
    def _refuse_weak_values(self) -> Self:
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
        """Key that derives each refresh token from its predecessor. Derived from the pepper."""
        return hmac.digest(self.pepper, b"boxoffice refresh tokens", hashlib.sha256)

    @property
    def idempotency_secret(self) -> bytes:
        """Key of the digests of requests with an idempotency key."""
        return hmac.digest(self.pepper, b"boxoffice idempotency", hashlib.sha256)

    @property
    def throttle_key(self) -> bytes:
        """Key of the digests of accounts whose login attempts are counted."""
        return hmac.digest(self.pepper, b"boxoffice login throttle", hashlib.sha256)

    @property
    def sign_in_key(self) -> bytes:
        """Key of device tokens and of the digests of known addresses."""
        return hmac.digest(self.pepper, b"boxoffice sign-in guard", hashlib.sha256)


def _refuse_short(name: str, secret: SecretStr | None) -> None:
    if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET_LENGTH:
        raise ValueError(f"{name} must have {_MIN_SECRET_LENGTH} characters or more")
