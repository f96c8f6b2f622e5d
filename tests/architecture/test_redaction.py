"""Personal data and secrets are classified in the contract, so that nothing shows them."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from boxoffice.auth.v1 import auth_service_pb2
from mesh.observability import redaction
from mesh.rpc.policy import PACKAGE
from tests.architecture.contract import contract

# Names of what is somebody's, or opens something. A new field with such a name is marked, too.
PERSONAL = {"email", "full_name", "phone"}
SECRET_ENDINGS = ("password", "secret", "access_token", "refresh_token", "reset_token")


def fields(message: DescriptorProto) -> Iterator[tuple[str, FieldDescriptorProto]]:
    for field in message.field:
        yield f"{message.name}.{field.name}", field
    for nested in message.nested_type:
        yield from fields(nested)


def is_sensitive(field: FieldDescriptorProto) -> bool:
    return field.name in PERSONAL or field.name.endswith(SECRET_ENDINGS)


def test_every_sensitive_field_is_marked() -> None:
    sensitive = [
        (name, field)
        for file in contract().file
        if file.package.startswith(PACKAGE)
        for message in file.message_type
        for name, field in fields(message)
        if is_sensitive(field)
    ]
    assert len(sensitive) > 20
    assert [name for name, field in sensitive if not field.options.debug_redact] == []


def test_a_shown_request_hides_them() -> None:
    request = auth_service_pb2.RegisterRequest(
        email="mira@example.com", password="Curtain-Up-2026!", full_name="Mira Rao"
    )
    assert redaction.shown(request) == {"email": "…", "password": "…", "full_name": "…"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("no mira@example.com here", "no … here"),
        ("Key (email)=(mira@example.com) already exists", "Key (email)=(…) already exists"),
        (
            "DETAIL:  Failing row contains (1, Mira Rao, +91 98).",
            "DETAIL:  Failing row contains ….",
        ),
        ("postgresql://boxoffice:hunter2@db/auth", "postgresql://…@db/auth"),
        ("Bearer abc.def-123", "…"),
        ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "…"),
        ("could not lock row in relation pools", "could not lock row in relation pools"),
    ],
)
def test_error_texts_lose_what_drivers_quote(given: str, shown: str) -> None:
    assert redaction.text(given) == shown
