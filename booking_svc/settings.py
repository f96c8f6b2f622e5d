"""Settings of booking_svc."""

from pydantic import Field, SecretStr

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

    def needs(self) -> tuple[str, ...]:
        return ("booking_database_url", "redis_url")

    @property
    def database_url(self) -> str:
        return self.required("booking_database_url")
