import json
import stat
from pathlib import Path

from launcher import generated_secrets


def test_they_are_made_once_and_kept_for_their_owner(tmp_path: Path) -> None:
    made = generated_secrets.load(tmp_path)
    assert set(made) == set(generated_secrets.NAMES)
    assert len(set(made.values())) == len(made)
    assert all(len(secret) >= 32 for secret in made.values())
    assert generated_secrets.load(tmp_path) == made
    path = tmp_path / "secrets.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_one_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps({"password_pepper": "kept"}))
    made = generated_secrets.load(tmp_path)
    assert made["password_pepper"] == "kept"
    assert generated_secrets.load(tmp_path) == made
