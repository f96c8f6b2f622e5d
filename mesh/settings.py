"""Settings that all processes share, read from environment variables.

Every setting is BOXOFFICE_<NAME>. A service adds its own in its settings.py;
`make settings` lists them all and `.env.example` is generated from them.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SERVICES = ("auth_svc", "booking_svc", "stock_svc", "payment_svc")
"""In the order of their ports: the first listens on the port base plus 1."""

_REPLICA_PORT_STEP = 10


class MeshSettings(BaseSettings):
    """What every process needs to find the others and to know where it runs."""

    model_config = SettingsConfigDict(
        env_prefix="BOXOFFICE_",
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        frozen=True,
        # A refused secret must not be repeated in the message that refuses it.
        hide_input_in_errors=True,
    )

    home: Path = Field(
        Path(".boxoffice"), description="State folder: database, certificates, keys, logs."
    )
    environment: Literal["development", "production"] = Field(
        "development",
        description="production refuses default secrets, the sandbox provider and reflection.",
    )
    host: str = Field("127.0.0.1", description="Address that the services listen on.")
    port_base: int = Field(
        50050, ge=1024, le=65000, description="The services' ports count up from here."
    )
    gateway_port: int = Field(8080, ge=1, le=65535, description="Port of the gateway.")
    envoy_admin_port: int = Field(
        9901, ge=1024, le=65535, description="Port of Envoy's own admin page, on 127.0.0.1 only."
    )
    gateways: int = Field(1, ge=1, le=8, description="Gateway processes that `make up` starts.")
    replicas: int = Field(
        1, ge=1, le=8, description="Processes of each service that `make up` starts."
    )
    rate_limit_scale: float = Field(
        1, gt=0, le=1_000_000, description="Multiplies every limit; development only."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("http://localhost:3000",), description="Origins that browsers may call from, by commas."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis to use in place of the embedded one, e.g. redis://host:6379/0."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged."
    )
    shutdown_grace_seconds: float = Field(
        12, ge=0, le=300, description="Time that running calls get to end after SIGTERM."
    )

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        origins = values.get("cors_origins")
        if isinstance(origins, str):
            values["cors_origins"] = tuple(
                part.strip() for part in origins.split(",") if part.strip()
            )
        return values

    @model_validator(mode="after")
    def _refuse_in_production(self) -> Self:
        if self.environment == "production" and self.rate_limit_scale != 1:
            raise ValueError("BOXOFFICE_RATE_LIMIT_SCALE is for development only")
        return self

    def needs(self) -> tuple[str, ...]:
        """Fields without a default that the process cannot run without."""
        return ()

    def required(self, field: str) -> str:
        """The text of a setting that is needed. Raises ValueError when it is not set."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"BOXOFFICE_{field.upper()} is not set; `make up` sets it")
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    @property
    def is_development(self) -> bool:
        return self.environment == "development"

    @property
    def certificates(self) -> Path:
        """Folder with ca.pem and, per process name, <name>.pem and <name>.key."""
        return self.home / "certificates"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def port(self, service: str, replica: int = 0) -> int:
        """Port of a service's process, e.g. 50053 for stock_svc, 50063 for its second one."""
        return self.port_base + SERVICES.index(service) + 1 + replica * _REPLICA_PORT_STEP

    def target(self, service: str) -> str:
        """gRPC target of all processes of a service, for round-robin balancing."""
        addresses = (f"{self.host}:{self.port(service, n)}" for n in range(self.replicas))
        return "ipv4:" + ",".join(addresses)
