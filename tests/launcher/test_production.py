"""With BOXOFFICE_ENVIRONMENT=production settings for development are refused."""

from typing import Any, get_args

import pytest
from pydantic import SecretStr, ValidationError

from launcher.settings_listing import settings_of
from mesh.paths import ROOT
from mesh.settings import LIMIT_SERVICE, PUBLISHED_SECRETS, SERVICES, MeshSettings
from testing.start_errors import error_at_start

PROCESSES = {service: settings_of(service) for service in (*SERVICES, LIMIT_SERVICE)}
SECRETS = sorted(
    (service, name)
    for service, declared in PROCESSES.items()
    if declared is not None
    for name, field in declared.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
# Settings with a required form, into which the weak secret is inserted.
FORMS = {"smtp_url": "smtp://user:{}@mail.example.com"}
# Settings that must be set together with others.
REQUIRED_WITH = {
    "captcha_secret": {"captcha_verify_url": "https://captcha.example.com/siteverify"},
    "stripe_secret_key": {"stripe_webhook_secrets": "drawn-4f81c2aa"},
    "stripe_webhook_secrets": {"stripe_secret_key": "drawn-4f81c2aa"},
    "razorpay_key_id": {
        "razorpay_key_secret": "drawn-4f81c2aa",
        "razorpay_webhook_secrets": "drawn-4f81c2aa",
    },
    "razorpay_key_secret": {
        "razorpay_key_id": "drawn-4f81c2aa",
        "razorpay_webhook_secrets": "drawn-4f81c2aa",
    },
    "razorpay_webhook_secrets": {
        "razorpay_key_id": "drawn-4f81c2aa",
        "razorpay_key_secret": "drawn-4f81c2aa",
    },
}


def declared(service: str) -> type[MeshSettings]:
    settings = settings_of(service)
    assert settings is not None
    assert issubclass(settings, MeshSettings)
    return settings


def test_every_published_secret_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(secret in readme for secret in PUBLISHED_SECRETS)


@pytest.mark.parametrize(("service", "name"), SECRETS)
@pytest.mark.parametrize("known", [*PUBLISHED_SECRETS, "x" * 40])
def test_weak_and_published_secrets_are_refused(service: str, name: str, known: str) -> None:
    if name in FORMS and known not in PUBLISHED_SECRETS:
        # The host and the user already have enough distinct characters.
        known = PUBLISHED_SECRETS[0]
    values: dict[str, Any] = {
        name: FORMS.get(name, "{}").format(known),
        **REQUIRED_WITH.get(name, {}),
    }
    declared(service).model_validate({**values, "environment": "development"})
    with pytest.raises(ValidationError, match=f"BOXOFFICE_{name.upper()} is an example value or"):
        declared(service).model_validate({**values, "environment": "production"})


@pytest.mark.parametrize("service", PROCESSES)
def test_no_secret_has_a_default(service: str) -> None:
    for name, field in declared(service).model_fields.items():
        if (service, name) in SECRETS:
            assert field.default is None, name


@pytest.mark.parametrize(
    ("service", "field", "value"),
    [
        ("auth_svc", "password_cost", 9),
        ("auth_svc", "rate_limit_scale", 2),
        ("booking_svc", "webhook_allow_loopback", True),
        ("payment_svc", "sandbox_faults", "DROP=0.5"),
    ],
)
def test_development_only_values_are_refused(service: str, field: str, value: Any) -> None:
    declared(service).model_validate({field: value})
    with pytest.raises(ValidationError, match=f"BOXOFFICE_{field.upper()}.* for development only"):
        declared(service).model_validate({field: value, "environment": "production"})


@pytest.mark.parametrize("service", SERVICES)
def test_a_secret_that_replicas_share_must_be_set(service: str) -> None:
    database = service.removesuffix("_svc").upper()
    error = error_at_start(
        service,
        ENVIRONMENT="production",
        REDIS_URL="redis://cache.example.com",
        PASSWORD_PEPPER="a-pepper-that-was-drawn-by-a-machine-0815",
        WEBHOOK_SECRET_KEYS="a-key-that-was-drawn-by-a-machine-0815-4711",
        QUEUE_SECRET_KEYS="a-key-that-was-drawn-by-a-machine-0815-4712",
        **{f"{database}_DATABASE_URL": "postgresql+psycopg://db.example.com/one"},
    )
    assert "cannot start: BOXOFFICE_PAGE_TOKEN_SECRET is not set" in error
