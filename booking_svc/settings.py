"""Settings of booking_svc."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from mesh.settings import MeshSettings


class Settings(MeshSettings):
    booking_database_url: SecretStr | None = Field(
        None, description="booking_svc's PostgreSQL in place of the embedded one."
    )
    hold_ttl_seconds: int = Field(
        600, ge=1, le=86_400, description="How long a new booking holds its places."
    )
    payment_window_seconds: int = Field(
        900, ge=1, le=86_400, description="How long they are held from checkout on, once."
    )
    webhook_allow_loopback: bool = Field(
        False, description="Webhooks may go to this machine; development only."
    )

    @model_validator(mode="after")
    def _refuse_loopback_in_production(self) -> Self:
        if not self.is_development and self.webhook_allow_loopback:
            raise ValueError("BOXOFFICE_WEBHOOK_ALLOW_LOOPBACK is for development only")
        return self

    def needs(self) -> tuple[str, ...]:
        return ("booking_database_url", "redis_url")

    @property
    def database_url(self) -> str:
        return self.required("booking_database_url")
