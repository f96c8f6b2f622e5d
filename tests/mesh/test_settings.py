"""Secret settings are read from files, as containers mount them."""

from pathlib import Path

import pytest

from mesh.settings import MeshSettings


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "BOXOFFICE_REDIS_URL").write_text("redis://file:6379/0\n")
    monkeypatch.delenv("BOXOFFICE_REDIS_URL", raising=False)
    monkeypatch.setenv("BOXOFFICE_SECRETS_FOLDER", str(tmp_path))
    return tmp_path


def test_a_setting_is_read_from_its_file(secrets: Path) -> None:
    assert MeshSettings().required("redis_url") == "redis://file:6379/0"


def test_a_variable_takes_precedence(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXOFFICE_REDIS_URL", "redis://variable:6379/0")
    assert MeshSettings().required("redis_url") == "redis://variable:6379/0"


def test_a_process_without_secrets_needs_no_folder(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOXOFFICE_SECRETS_FOLDER", str(secrets / "missing"))
    assert MeshSettings().redis_url is None
