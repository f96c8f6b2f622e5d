import json
import stat
from pathlib import Path

from launcher import generated_secrets


def test_secrets_are_generated_once_and_readable_only_by_their_owner(tmp_path: Path) -> None:
    generated = generated_secrets.load(tmp_path)
    assert set(generated) == set(generated_secrets.NAMES)
    assert len(set(generated.values())) == len(generated)
    assert all(len(secret) >= 32 for secret in generated.values())
    assert generated_secrets.load(tmp_path) == generated
    path = tmp_path / "secrets.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_secret_does_not_change_the_others(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps({"password_pepper": "kept"}))
    generated = generated_secrets.load(tmp_path)
    assert generated["password_pepper"] == "kept"
    assert generated_secrets.load(tmp_path) == generated
