"""Phone numbers as people type them."""

import pytest

from auth_svc.phone import to_e164
from mesh.errors import DomainError


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("", ""),
        ("+919876543210", "+919876543210"),
        ("+91 98765 43210", "+919876543210"),
        ("(+91) 98765-43210", "+919876543210"),
        ("098765 43210", "+919876543210"),
        ("98765.43210", "+919876543210"),
        ("0091 98765 43210", "+919876543210"),
        ("+44 (0)20 7946 0018", "+442079460018"),
        ("+49 151/12345678", "+4915112345678"),
    ],
)
def test_numbers_are_stored_as_e164(typed: str, stored: str) -> None:
    assert to_e164(typed, region="IN") == stored


@pytest.mark.parametrize("typed", ["12345", "+0", "+91 1", "+9198765432101234567", "+999 12345678"])
def test_what_is_no_number_is_refused(typed: str) -> None:
    with pytest.raises(DomainError) as refused:
        to_e164(typed, region="IN")
    assert [violation.field for violation in refused.value.violations] == ["phone"]
