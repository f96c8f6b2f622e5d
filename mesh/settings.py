"""Settings that all processes share, read from environment variables.

Every setting is BOXOFFICE_<NAME>. A service adds its own in its settings.py;
`make settings` lists them all and `.env.example` is generated from them.
"""

import ipaddress
import os
import ssl
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from mesh.mail_settings import SmtpServer, address_of

SERVICES = ("auth_svc", "booking_svc", "stock_svc", "payment_svc")
"""In the order of their ports: the first listens on the port base + 1."""

LIMIT_SERVICE = "limit_svc"
"""Runs only with several gateways. Its port follows those of the services."""

_PROCESSES = (*SERVICES, LIMIT_SERVICE)
_REPLICA_PORT_STEP = 10
_PORT_BASE = 50050
# The gateway checks health every second and acts on the second failed check.
_DRAIN_SECONDS = 3.0
_METRICS_PORT_BASE = 9463
_ADMIN_PORT = 9901
# After the ports of eight replicas.
_ADMIN_PORT_OFFSET = 91

PUBLISHED_SECRETS = ("an-admin-secret-of-32-characters",)
"""Example values in the README; production refuses them."""
# A random secret has at least this many distinct characters.
_MIN_DISTINCT_CHARACTERS = 8


def _admin_port(port_base: int) -> int:
    """Derived from the port base, so that two meshes on one machine do not collide."""
    return _ADMIN_PORT if port_base == _PORT_BASE else port_base + _ADMIN_PORT_OFFSET


class MeshSettings(BaseSettings):
    """The settings that every process reads: addresses, ports, certificates, logging, limits."""

    model_config = SettingsConfigDict(
        env_prefix="BOXOFFICE_",
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        frozen=True,
        # An error about a secret must not quote it.
        hide_input_in_errors=True,
    )

    home: Path = Field(
        Path(".boxoffice"), description="State folder: databases, certificates, keys, logs."
    )
    environment: Literal["development", "production"] = Field(
        "development",
        description="production refuses example secrets, the sandbox provider and reflection.",
    )
    host: str = Field("127.0.0.1", description="Address that the services listen on.")
    peer_host: str | None = Field(
        None,
        description="Address on which the services and the gateway reach the services, e.g. of a "
        "proxy between them. Unset: BOXOFFICE_HOST.",
    )
    port_base: int = Field(
        _PORT_BASE, ge=1024, le=65000, description="The services listen on the ports after this."
    )
    service_domain: str | None = Field(
        None,
        max_length=200,
        description="DNS domain of the services, e.g. boxoffice.svc.cluster.local; stock_svc "
        "resolves as stock-svc in it. Unset: all services run on this machine.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address on which processes serve /metrics, /live and /ready."
    )
    metrics_port_base: int | None = Field(
        None,
        ge=1024,
        le=65000,
        description="Processes serve metrics on the ports after this. Unset: 9463, or the port "
        "base + 5 if that is not the default.",
    )
    gateway_port: int = Field(
        8080, ge=1, le=65535, description="Port of the gateway; a second gateway uses the next."
    )
    gateway_metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Port on which the gateway serves /stats/prometheus and /ready, on "
        "BOXOFFICE_METRICS_HOST. Unset: only Envoy's admin port serves them.",
    )
    gateway_tls: bool = Field(
        False, description="Serve only TLS on the gateway's port; required in production."
    )
    gateway_certificate: Path | None = Field(
        None, description="Gateway's certificate chain, PEM. Unset: one of the development CA."
    )
    gateway_key: Path | None = Field(None, description="Private key of that certificate, PEM.")
    envoy_admin_port: int = Field(
        default_factory=lambda given: _admin_port(given.get("port_base", _PORT_BASE)),
        ge=1024,
        le=65535,
        description="Port of Envoy's admin page, on 127.0.0.1 only. Unset: 9901, or the port base"
        " + 91 if that is not the default.",
    )
    gateways: int = Field(1, ge=1, le=8, description="Gateway processes that `make up` starts.")
    replicas: int = Field(
        1, ge=1, le=8, description="Processes of each service that `make up` starts."
    )
    rate_limit_scale: float = Field(
        1, gt=0, le=1_000_000, description="Factor for all rate limits; development only."
    )
    address_limit_scale: float = Field(
        1,
        ge=1,
        le=10_000,
        description="Factor for the rate limits per IP address, where many customers share one, "
        "e.g. 50 for a campus. Limits per user and per account stay.",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="CIDRs of the proxies in front of the gateway whose X-Forwarded-For is "
        "believed, separated by commas, e.g. 10.0.0.0/8.",
    )
    proxy_protocol: bool = Field(
        False,
        description="Read the client's address from the PROXY protocol (versions 1 and 2). Only "
        "the balancer may then reach the gateway's port.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("http://localhost:3000",),
        description="Origins from which browsers may call the API, separated by commas.",
    )
    api_contact: str = Field(
        "Boxoffice <support@example.com>",
        description="Whom users of the API can ask; shown at /docs.",
    )
    api_licence: str = Field(
        "All rights reserved", description="Terms of use of the API; shown at /docs."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis to use instead of the embedded one, e.g. redis://host:6379/0."
    )
    smtp_url: SecretStr | None = Field(
        None,
        description="Mail server, e.g. smtp://user:password@host:587?starttls=true or"
        " smtps://host:465. Unset: mails are written to files in the state folder.",
    )
    mail_from: str = Field(
        "Boxoffice <noreply@example.com>", description="Sender of mails to customers."
    )
    page_token_secret: SecretStr | None = Field(
        None,
        description="Key that signs page tokens. Unset: `make up` generates one.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged."
    )
    trace_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+$",
        description="OpenTelemetry collector (OTLP over gRPC) for traces, e.g. "
        "http://127.0.0.1:4317. Unset: no traces.",
    )
    trace_sample: float = Field(0.1, ge=0, le=1, description="Share of requests that are traced.")
    sentry_dsn: SecretStr | None = Field(
        None, description="Sentry DSN for bug reports. Unset: no reports."
    )
    release: str = Field(
        "", max_length=64, description="Version named in bug reports, e.g. a commit."
    )
    secrets_folder: Path | None = Field(
        None,
        description="Folder with a file per secret setting, named like its variable, e.g. "
        "BOXOFFICE_REDIS_URL. Variables take precedence.",
    )
    shutdown_grace_seconds: float = Field(
        12, ge=0, le=300, description="Seconds that running calls have to finish after SIGTERM."
    )

    drain_seconds: float | None = Field(
        None,
        ge=0,
        le=60,
        description="Seconds for which a stopping process still accepts calls while its clients "
        "learn that it stops. Unset: 3 with several replicas, else 0.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the files of BOXOFFICE_SECRETS_FOLDER, if it exists."""
        folder = os.environ.get("BOXOFFICE_SECRETS_FOLDER", "")
        if folder and Path(folder).is_dir():
            file_secret_settings = SecretsSettingsSource(settings_cls, secrets_dir=folder)
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in ("cors_origins", "trusted_proxies"):
            listed = values.get(name)
            if isinstance(listed, str):
                values[name] = tuple(part.strip() for part in listed.split(",") if part.strip())
        return values

    @field_validator("trusted_proxies")
    @classmethod
    def _require_networks(cls, listed: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(ipaddress.ip_network(part)) for part in listed)
        except ValueError as error:
            raise ValueError(f"BOXOFFICE_TRUSTED_PROXIES: {error}") from None

    @model_validator(mode="after")
    def _refuse_in_production(self) -> Self:
        if (self.gateway_certificate is None) != (self.gateway_key is None):
            raise ValueError(
                "BOXOFFICE_GATEWAY_CERTIFICATE and BOXOFFICE_GATEWAY_KEY must be set together"
            )
        if self.environment == "production" and self.rate_limit_scale != 1:
            raise ValueError("BOXOFFICE_RATE_LIMIT_SCALE is for development only")
        return self

    @model_validator(mode="after")
    def _refuse_weak_secrets(self) -> Self:
        if self.is_development:
            return self
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr) and _is_weak(value.get_secret_value()):
                raise ValueError(
                    f"BOXOFFICE_{name.upper()} is an example value or easy to guess; generate one:"
                    ' python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
                )
        return self

    @model_validator(mode="after")
    def _refuse_invalid_mail_settings(self) -> Self:
        for name, address in (
            ("BOXOFFICE_MAIL_FROM", self.mail_from),
            ("BOXOFFICE_API_CONTACT", self.api_contact),
        ):
            try:
                address_of(address)
            except ValueError:
                raise ValueError(
                    f"{name} must be an address like Boxoffice <noreply@example.com>"
                ) from None
        if self.smtp_url is not None:
            try:
                SmtpServer.parse(self.smtp_url.get_secret_value())
            except ValueError as error:
                raise ValueError(f"BOXOFFICE_SMTP_URL: {error}") from None
        return self

    def needs(self) -> tuple[str, ...]:
        """Names of optional fields without which the process cannot run."""
        return ()

    def required(self, field: str) -> str:
        """The value of an optional setting as text. Raises ValueError when it is not set."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"BOXOFFICE_{field.upper()} is not set; `make up` sets it")
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    @property
    def is_development(self) -> bool:
        return self.environment == "development"

    @property
    def counts_globally(self) -> bool:
        """Whether limit_svc counts rate limits, as it does with several gateways."""
        return self.gateways > 1

    @property
    def drain_pause_seconds(self) -> float:
        if self.drain_seconds is not None:
            return self.drain_seconds
        return _DRAIN_SECONDS if self.replicas > 1 else 0.0

    @property
    def certificates(self) -> Path:
        """Folder with ca.pem and, per process name, <name>.pem and <name>.key."""
        return self.home / "certificates"

    @property
    def gateway_url(self) -> str:
        scheme = "https" if self.gateway_tls else "http"
        return f"{scheme}://127.0.0.1:{self.gateway_port}"

    @property
    def gateway_certificate_files(self) -> tuple[Path, Path]:
        """Certificate chain and private key of the gateway's port."""
        if self.gateway_certificate is None or self.gateway_key is None:
            return self.certificates / "gateway.pem", self.certificates / "gateway.key"
        return self.gateway_certificate, self.gateway_key

    @property
    def gateway_trust(self) -> ssl.SSLContext | bool:
        """The `verify` argument for httpx when a process on this machine calls the gateway.

        False with the deployment's own certificate, which does not name 127.0.0.1.
        """
        if not self.gateway_tls or self.gateway_certificate is not None:
            return not self.gateway_tls
        return ssl.create_default_context(cafile=self.certificates / "ca.pem")

    def port(self, service: str, replica: int = 0) -> int:
        """Port of a service's process, e.g. 50053 for stock_svc, 50063 for its second replica."""
        return self.port_base + _PROCESSES.index(service) + 1 + replica * _REPLICA_PORT_STEP

    def metrics_port(self, service: str, replica: int = 0) -> int:
        """Port of a process's metrics and probes, e.g. 9466 for stock_svc."""
        base = self.metrics_port_base
        if base is None:
            # Derived from the port base, so that two meshes on one machine do not collide.
            base = _METRICS_PORT_BASE if self.port_base == _PORT_BASE else self.port_base + 5
        return base + _PROCESSES.index(service) + 1 + replica * _REPLICA_PORT_STEP

    def host_name(self, service: str) -> str | None:
        """DNS name of a service; None when all services run on this machine."""
        if self.service_domain is None:
            return None
        return f"{service.replace('_', '-')}.{self.service_domain}"

    def target(self, service: str) -> str:
        """gRPC target with all replicas of a service, for round-robin balancing."""
        if (name := self.host_name(service)) is not None:
            return f"dns:///{name}:{self.port(service)}"
        host = self.peer_host or self.host
        addresses = (f"{host}:{self.port(service, n)}" for n in range(self.replicas))
        return "ipv4:" + ",".join(addresses)


def _is_weak(secret: str) -> bool:
    return len(set(secret)) < _MIN_DISTINCT_CHARACTERS or any(
        published in secret for published in PUBLISHED_SECRETS
    )
