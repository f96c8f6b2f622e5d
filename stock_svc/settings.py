"""Settings of stock_svc, next to those that all services share."""

from pydantic import Field, SecretStr

from mesh.settings import MeshSettings


class Settings(MeshSettings):
    stock_database_url: SecretStr | None = Field(
        None, description="stock_svc's PostgreSQL in place of the embedded one."
    )
    stock_sweep_seconds: float = Field(
        2.0, gt=0, le=300, description="Pause between two sweeps for lapsed holds."
    )

    def needs(self) -> tuple[str, ...]:
        return ("stock_database_url",)

    @property
    def database_url(self) -> str:
        return self.required("stock_database_url")
