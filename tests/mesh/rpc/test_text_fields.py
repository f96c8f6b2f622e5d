"""The kinds of text in requests: what is trimmed, what is checked, what is left alone."""

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.bookings.v1 import booking_service_pb2
from mesh.rpc.text_fields import normalise


def test_white_space_around_names_and_addresses_is_removed_but_not_around_passwords() -> None:
    request = auth_service_pb2.RegisterRequest(
        email=" mira@example.com\n", full_name="\tMira Rao ", phone=" 98765 43210", password=" x\n"
    )
    assert normalise(request) == ()
    assert request == auth_service_pb2.RegisterRequest(
        email="mira@example.com", full_name="Mira Rao", phone="98765 43210", password=" x\n"
    )


def test_each_text_at_fault_is_named_also_in_lists() -> None:
    request = booking_service_pb2.UpdateBookingRequest(
        attendees=[" Mira ", " ", "\u202eRao"], note="line\nline\u200b"
    )
    assert [violation.field for violation in normalise(request)] == ["attendees[2]", "note"]
    # A name of white space becomes empty, which the contract's other rules refuse.
    assert request.attendees[:2] == ["Mira", ""]
