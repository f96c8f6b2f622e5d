"""Every name in a request is declared as one, so that white space and hidden characters are handled."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from boxoffice.options.v1.text_pb2 import Text
from mesh.rpc.text_fields import kind_of
from tests.architecture.contract import request_messages

KINDS = {
    "name": Text.TEXT_TITLE,
    "title": Text.TEXT_TITLE,
    "label": Text.TEXT_TITLE,
    "venue_name": Text.TEXT_TITLE,
    "full_name": Text.TEXT_NAME,
    "attendees": Text.TEXT_NAME,
    "phone": Text.TEXT_PHONE,
    "password": Text.TEXT_SECRET,
    "new_password": Text.TEXT_SECRET,
    "current_password": Text.TEXT_SECRET,
    "token": Text.TEXT_SECRET,
}
FIELDS = {
    field.full_name: field
    for message in request_messages().values()
    for field in message.fields
    if message.full_name.startswith("boxoffice.")
    and field.type == FieldDescriptor.TYPE_STRING
    and field.name in KINDS
}


def test_the_contract_has_names() -> None:
    assert {field.name for field in FIELDS.values()} == KINDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_a_name_is_declared_as_one(name: str) -> None:
    field = FIELDS[name]
    assert kind_of(field) == KINDS[field.name]
