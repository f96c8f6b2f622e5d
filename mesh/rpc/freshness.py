"""Whether what was generated from the protos is still what they say.

Services and the gateway's generator ask before they start: a policy that was changed but
not compiled would hold for one and not for the other.
"""

import hashlib
from pathlib import Path

from mesh.paths import BUILD, PROTOS

STAMP = BUILD / "protos.sha256"
"""Written by launcher/protos.py with the stubs and the descriptor set."""


class StaleError(Exception):
    """The protos are not those that the generated files were made from."""


def digest(protos: Path = PROTOS) -> str:
    """Changes when a proto does."""
    seen = hashlib.sha256()
    for path in sorted(protos.rglob("*.proto")):
        seen.update(path.relative_to(protos).as_posix().encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()


def check(protos: Path = PROTOS, stamp: Path = STAMP) -> None:
    """Raises StaleError; passes where there are no protos, as in an installed package."""
    if not protos.is_dir():
        return
    if not stamp.exists() or stamp.read_text() != digest(protos):
        raise StaleError("the protos have changed since they were compiled: run `make protos`")
