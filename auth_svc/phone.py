"""Phone numbers: people type them in many forms, and they are stored as E.164."""

import phonenumbers

from mesh.errors import FieldViolation, invalid


def to_e164(typed: str, *, region: str) -> str:
    """A number as E.164, e.g. `+919876543210` of `098765 43210` in region IN. Empty for an empty one.

    `region` is the ISO 3166 country of numbers without a country code. Raises VALIDATION_FAILED.
    """
    if not typed:
        return ""
    try:
        number = phonenumbers.parse(typed, region)
    except phonenumbers.NumberParseException:
        raise _not_a_number(region) from None
    # Numbering plans change faster than a release: only the length is checked.
    if not phonenumbers.is_possible_number(number) or number.extension:
        raise _not_a_number(region)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _not_a_number(region: str) -> Exception:
    return invalid(
        FieldViolation(
            "phone",
            "must be a phone number with its country code, e.g. +91 98765 43210,"
            f" or one of {region} without",
        )
    )
