"""Settings of payment_svc."""

from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from mesh.settings import MeshSettings
from payment_svc.providers.sandbox import faults

_STRIPE = ("stripe_secret_key", "stripe_webhook_secrets")
_RAZORPAY = ("razorpay_key_id", "razorpay_key_secret", "razorpay_webhook_secrets")


class Settings(MeshSettings):
    payment_database_url: SecretStr | None = Field(
        None, description="payment_svc's PostgreSQL in place of the embedded one."
    )
    sandbox_webhook_secret: SecretStr | None = Field(
        None, description="Secret of the sandbox provider's webhooks; `make up` generates it."
    )

    stripe_secret_key: SecretStr | None = Field(
        None, description="Stripe's API key. Set it with the webhook secrets to enable Stripe."
    )
    stripe_webhook_secrets: SecretStr | None = Field(
        None,
        description="Stripe's webhook signing secrets, separated by commas: two during a rotation.",
    )
    stripe_api_base: str | None = Field(
        None,
        pattern="^https?://",
        description="Base URL of Stripe's API, e.g. of a stand-in in tests.",
    )
    razorpay_key_id: SecretStr | None = Field(
        None,
        description="Razorpay's API key. Set it with both secrets to enable Razorpay.",
    )
    razorpay_key_secret: SecretStr | None = Field(
        None, description="The secret of Razorpay's API key."
    )
    razorpay_webhook_secrets: SecretStr | None = Field(
        None, description="Razorpay's webhook secrets, separated by commas: two during a rotation."
    )
    razorpay_api_base: str | None = Field(
        None,
        pattern="^https?://",
        description="Base URL of Razorpay's API, e.g. of a stand-in in tests.",
    )

    sandbox_faults: str = Field(
        "",
        description="Probabilities of the sandbox's faults: `DROP=0.3,ERROR_AFTER=0.05`.",
    )
    inbound_webhook_secrets: SecretStr | None = Field(
        None,
        description="Other senders of webhooks and their secrets: `ringcentral=secret,crm=secret`.",
    )

    @field_validator("sandbox_faults")
    @classmethod
    def _refuse_unknown_faults(cls, text: str) -> str:
        faults.parse(text)
        return text

    @model_validator(mode="after")
    def _refuse_faults_in_production(self) -> Self:
        if not self.is_development and self.sandbox_faults:
            raise ValueError("BOXOFFICE_SANDBOX_FAULTS is for development only")
        return self

    @property
    def inbound_secrets(self) -> dict[str, str]:
        """The secret of each sender. Raises ValueError for a sender without one."""
        if self.inbound_webhook_secrets is None:
            return {}
        pairs = [part.partition("=") for part in self.secrets("inbound_webhook_secrets")]
        if not all(name and secret for name, _, secret in pairs):
            raise ValueError("BOXOFFICE_INBOUND_WEBHOOK_SECRETS: write sender=secret")
        return {name.strip(): secret for name, _, secret in pairs}

    @model_validator(mode="after")
    def _refuse_half_a_provider(self) -> Self:
        for fields in (_STRIPE, _RAZORPAY):
            given = [getattr(self, field) is not None for field in fields]
            if any(given) and not all(given):
                names = ", ".join(f"BOXOFFICE_{field.upper()}" for field in fields)
                raise ValueError(f"set all of {names}, or none")
        return self

    @property
    def has_stripe(self) -> bool:
        return self.stripe_secret_key is not None

    @property
    def has_razorpay(self) -> bool:
        return self.razorpay_key_id is not None

    def secrets(self, field: str) -> tuple[str, ...]:
        """A setting's secrets, which are separated by commas."""
        return tuple(part.strip() for part in self.required(field).split(",") if part.strip())

    def needs(self) -> tuple[str, ...]:
        sandbox = ("sandbox_webhook_secret",) if self.is_development else ()
        return ("payment_database_url", *sandbox)

    @property
    def database_url(self) -> str:
        return self.required("payment_database_url")

    @property
    def sandbox_secret(self) -> str | None:
        """None in production, which has no sandbox."""
        if not self.is_development:
            return None
        return self.required("sandbox_webhook_secret")
