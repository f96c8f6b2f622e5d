"""Settings of payment_svc, next to those that all services share."""

from pydantic import Field, SecretStr

from mesh.settings import MeshSettings


class Settings(MeshSettings):
    payment_database_url: SecretStr | None = Field(
        None, description="payment_svc's PostgreSQL in place of the embedded one."
    )
    sandbox_webhook_secret: SecretStr | None = Field(
        None, description="Signs the sandbox provider's webhooks; `make up` makes one."
    )

    def needs(self) -> tuple[str, ...]:
        sandbox = ("sandbox_webhook_secret",) if self.is_development else ()
        return ("payment_database_url", *sandbox)

    @property
    def database_url(self) -> str:
        return self.required("payment_database_url")

    @property
    def sandbox_secret(self) -> str | None:
        """None in production, where the sandbox is not offered."""
        if not self.is_development:
            return None
        return self.required("sandbox_webhook_secret")
