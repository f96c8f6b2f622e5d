from pathlib import Path

import pytest

from launcher import checks, protos
from launcher.errors import LaunchError

BEFORE = """
syntax = "proto3";
package boxoffice.sample.v1;

// A booking.
message Booking {
  // Its id.
  string booking_id = 1;
  // Words to remember.
  string note = 2;
}
"""


def compiled(folder: Path, text: str) -> Path:
    source = folder / "protos" / "boxoffice" / "sample" / "v1" / "sample.proto"
    source.parent.mkdir(parents=True)
    source.write_text(text)
    target = folder / "contract.binpb"
    protos.write_descriptor_set(folder / "protos", target)
    return target


def test_removing_a_field_fails_the_check(tmp_path: Path) -> None:
    before = compiled(tmp_path / "before", BEFORE)
    after = compiled(tmp_path / "after", BEFORE.replace("string note = 2;", ""))
    with pytest.raises(LaunchError, match='Previously present field "2" with name "note"'):
        checks.breaking(after, against=before)


def test_adding_a_field_passes(tmp_path: Path) -> None:
    before = compiled(tmp_path / "before", BEFORE)
    more = BEFORE.replace("string note = 2;", "string note = 2;\n  // More.\n  string more = 3;")
    checks.breaking(compiled(tmp_path / "after", more), against=before)
