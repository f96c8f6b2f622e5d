"""Settings of booking_svc."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from mesh.settings import MeshSettings

_MIN_KEY_LENGTH = 32


class Settings(MeshSettings):
    booking_database_url: SecretStr | None = Field(
        None, description="booking_svc's PostgreSQL in place of the embedded one."
    )
    hold_ttl_seconds: int = Field(
        600, ge=1, le=86_400, description="How long a new booking holds its places."
    )
    payment_window_seconds: int = Field(
        900,
        ge=1,
        le=86_400,
        description="How long a booking holds its places from its first checkout on.",
    )
    waiting_list_offer_seconds: int = Field(
        3600,
        ge=60,
        le=259_200,
        description="How long places that came back are offered to a customer of the waiting list.",
    )
    waiting_list_gather_seconds: int = Field(
        900,
        ge=0,
        le=86_400,
        description="How long places that come back gather for a group in front of the waiting list"
        " that needs more of them, before they go to those behind it or to everybody.",
    )
    waiting_list_claim_url: str = Field(
        "http://localhost:3000/waiting-list",
        description="Page where an offer of the waiting list is claimed; links in mails and webhooks"
        " append #entry=….",
    )
    payment_provider: str | None = Field(
        None,
        pattern="^[a-z]{1,32}$",
        description="Provider of a checkout that names none; `sandbox` in development.",
    )
    webhook_allow_loopback: bool = Field(
        default_factory=lambda given: given.get("environment") != "production",
        description="Allows webhooks to this machine. Unset: in development; production refuses it.",
    )

    webhook_secret_keys: SecretStr | None = Field(
        None,
        description="Keys that encrypt the webhook endpoints' secrets in the database: 32 characters"
        " or more each, separated by commas during a rotation, newest first; `make up` makes one.",
    )

    @model_validator(mode="after")
    def _refuse_short_keys(self) -> Self:
        if self.webhook_secret_keys is not None and not self.webhook_keys:
            raise ValueError("BOXOFFICE_WEBHOOK_SECRET_KEYS must contain a key")
        if any(len(key) < _MIN_KEY_LENGTH for key in self.webhook_keys):
            raise ValueError(
                f"BOXOFFICE_WEBHOOK_SECRET_KEYS: each key must have {_MIN_KEY_LENGTH} characters or more"
            )
        return self

    @model_validator(mode="after")
    def _refuse_loopback_in_production(self) -> Self:
        if not self.is_development and self.webhook_allow_loopback:
            raise ValueError("BOXOFFICE_WEBHOOK_ALLOW_LOOPBACK is for development only")
        return self

    def needs(self) -> tuple[str, ...]:
        return ("booking_database_url", "redis_url", "webhook_secret_keys")

    @property
    def webhook_keys(self) -> tuple[str, ...]:
        """The keys of `webhook_secret_keys`, newest first."""
        if self.webhook_secret_keys is None:
            return ()
        keys = self.webhook_secret_keys.get_secret_value().split(",")
        return tuple(key.strip() for key in keys if key.strip())

    @property
    def default_provider(self) -> str:
        """Empty in production without the setting: then a checkout must name its provider."""
        return self.payment_provider or ("sandbox" if self.is_development else "")

    @property
    def database_url(self) -> str:
        return self.required("booking_database_url")
