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

    queue_secret_keys: SecretStr | None = Field(
        None,
        description="Keys that sign tickets and admissions of waiting rooms and make the secrets of"
        " their draws: 32 characters or more each, separated by commas during a rotation, newest"
        " first; `make up` makes one.",
    )
    captcha_verify_url: str | None = Field(
        None,
        pattern="^https?://",
        description="Where captchas of waiting rooms are verified (`siteverify` of Turnstile, hCaptcha"
        " or reCAPTCHA). Unset: joining a queue needs no captcha.",
    )
    captcha_secret: SecretStr | None = Field(
        None, description="The secret for BOXOFFICE_CAPTCHA_VERIFY_URL."
    )

    @model_validator(mode="after")
    def _refuse_short_keys(self) -> Self:
        for name, keys in (
            ("webhook_secret_keys", self.webhook_keys),
            ("queue_secret_keys", self.queue_keys),
        ):
            setting = f"BOXOFFICE_{name.upper()}"
            if getattr(self, name) is not None and not keys:
                raise ValueError(f"{setting} must contain a key")
            if any(len(key) < _MIN_KEY_LENGTH for key in keys):
                raise ValueError(
                    f"{setting}: each key must have {_MIN_KEY_LENGTH} characters or more"
                )
        return self

    @model_validator(mode="after")
    def _refuse_half_a_captcha(self) -> Self:
        if (self.captcha_verify_url is None) != (self.captcha_secret is None):
            raise ValueError(
                "BOXOFFICE_CAPTCHA_VERIFY_URL and BOXOFFICE_CAPTCHA_SECRET are set together"
            )
        return self

    @model_validator(mode="after")
    def _refuse_loopback_in_production(self) -> Self:
        if not self.is_development and self.webhook_allow_loopback:
            raise ValueError("BOXOFFICE_WEBHOOK_ALLOW_LOOPBACK is for development only")
        return self

    def needs(self) -> tuple[str, ...]:
        return ("booking_database_url", "redis_url", "webhook_secret_keys", "queue_secret_keys")

    @property
    def webhook_keys(self) -> tuple[str, ...]:
        """The keys of `webhook_secret_keys`, newest first."""
        return _listed(self.webhook_secret_keys)

    @property
    def queue_keys(self) -> tuple[str, ...]:
        """The keys of `queue_secret_keys`, newest first."""
        return _listed(self.queue_secret_keys)

    @property
    def default_provider(self) -> str:
        """Empty in production without the setting: then a checkout must name its provider."""
        return self.payment_provider or ("sandbox" if self.is_development else "")

    @property
    def database_url(self) -> str:
        return self.required("booking_database_url")


def _listed(setting: SecretStr | None) -> tuple[str, ...]:
    keys = "" if setting is None else setting.get_secret_value()
    return tuple(key.strip() for key in keys.split(",") if key.strip())
