"""Settings of payment_svc, next to those that all services share."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from mesh.settings import MeshSettings


class Settings(MeshSettings):
    # A refused secret must not be repeated in the message that refuses it.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    payment_database_url: SecretStr | None = Field(
        None, description="payment_svc's PostgreSQL in place of the embedded one."
    )
    sandbox_webhook_secret: SecretStr | None = Field(
        None, description="Signs the sandbox provider's webhooks; `make up` makes one."
    )

    @property
    def database_url(self) -> str:
        """Raises ValueError when it is not set."""
        return _required("BOXOFFICE_PAYMENT_DATABASE_URL", self.payment_database_url)

    @property
    def sandbox_secret(self) -> str | None:
        """None in production, where the sandbox is not offered. Raises ValueError when not set."""
        if not self.is_development:
            return None
        return _required("BOXOFFICE_SANDBOX_WEBHOOK_SECRET", self.sandbox_webhook_secret)


def _required(name: str, value: SecretStr | None) -> str:
    if value is None:
        raise ValueError(f"{name} is not set; `make up` sets it")
    return value.get_secret_value()
