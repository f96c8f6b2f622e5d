import io
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from launcher import settings_listing
from launcher.errors import LaunchError
from launcher.provided import Provided, environment
from mesh.settings import MeshSettings


class Sample(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BOXOFFICE_")

    port: int = Field(default=8080, ge=1, le=65535, description="A port.")
    token: SecretStr = Field(default=SecretStr("x" * 8), min_length=8, description="A secret.")
    path: Path = Field(description="A path.")


def test_every_invalid_setting_is_one_line_with_an_example() -> None:
    with pytest.raises(LaunchError) as caught:
        settings_listing.load(Sample, port=99999, path="somewhere", token="geheim")
    port, token = caught.value.problem.splitlines()
    assert port == (
        "BOXOFFICE_PORT: input should be less than or equal to 65535, not '99999'. "
        "Example: BOXOFFICE_PORT=8080"
    )
    assert token.startswith("BOXOFFICE_TOKEN: ")
    assert "geheim" not in str(caught.value)


def test_every_unknown_setting_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("BOXOFFICE_GATEWAY_PRT=9090\nBOXOFFICE_HOME=here\nOTHER=1\n")
    environment = {
        "BOXOFFICE_HOLD_TTL": "60",
        "BOXOFFICE_ZZZ": "1",
        "BOXOFFICE_STAFF_PASSWORD": "x",
        "BOXOFFICE_STOCK_DATABASE_URL": "postgresql+psycopg://host/stock",
        "PATH": "/bin",
    }
    with pytest.raises(LaunchError) as caught:
        settings_listing.refuse_unknown(environment, file)
    assert caught.value.problem.splitlines() == [
        "BOXOFFICE_HOLD_TTL in the environment is not a setting."
        " Did you mean BOXOFFICE_HOLD_TTL_SECONDS?",
        "BOXOFFICE_ZZZ in the environment is not a setting.",
        "BOXOFFICE_GATEWAY_PRT in .env is not a setting. Did you mean BOXOFFICE_GATEWAY_PORT?",
    ]
    settings_listing.refuse_unknown({"BOXOFFICE_HOME": "here"}, tmp_path / "none")


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(LaunchError) as caught:
        settings_listing.load(Sample)
    assert caught.value.problem == "BOXOFFICE_PATH: field required"


def test_a_rule_between_settings_has_its_own_message() -> None:
    with pytest.raises(LaunchError, match="BOXOFFICE_RATE_LIMIT_SCALE is for development only"):
        settings_listing.load(MeshSettings, environment="production", rate_limit_scale=2)


def test_every_setting_is_listed_once_with_a_description() -> None:
    settings = [setting for section in settings_listing.sections() for setting in section.settings]
    variables = [setting.variable for setting in settings]
    assert len(set(variables)) == len(variables)
    assert {"BOXOFFICE_GATEWAY_PORT", "BOXOFFICE_STOCK_DATABASE_URL"} <= set(variables)
    assert [setting.variable for setting in settings if not setting.meaning] == []


def test_the_example_is_checked_against_the_settings(tmp_path: Path) -> None:
    example = tmp_path / ".env.example"
    with pytest.raises(LaunchError, match="out of date"):
        settings_listing.check_example(example)
    settings_listing.write_example(example)
    settings_listing.check_example(example)
    example.write_text(example.read_text().replace("=8080", "=8081"))
    with pytest.raises(LaunchError, match="out of date"):
        settings_listing.check_example(example)


def test_in_a_pipe_each_setting_is_one_line() -> None:
    output = io.StringIO()
    settings_listing.show(Console(file=output, width=40))
    lines = [line.split("\t") for line in output.getvalue().splitlines()]
    listed = [setting for section in settings_listing.sections() for setting in section.settings]
    assert [(line[0], line[3]) for line in lines] == [
        (setting.variable, setting.meaning) for setting in listed
    ]


def test_the_example_sets_nothing() -> None:
    lines = settings_listing.example().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_processes_get_all_settings_as_environment_variables() -> None:
    settings = MeshSettings.model_validate(
        {
            "home": "/somewhere",
            "gateway_port": 9090,
            "cors_origins": ("http://a", "http://b"),
            "redis_url": "redis://elsewhere",
        }
    )
    variables = environment(settings, {"BOXOFFICE_HOLD_TTL_SECONDS": "2"})
    assert variables["BOXOFFICE_HOME"] == "/somewhere"
    assert variables["BOXOFFICE_GATEWAY_PORT"] == "9090"
    assert variables["BOXOFFICE_CORS_ORIGINS"] == "http://a,http://b"
    assert variables["BOXOFFICE_REDIS_URL"] == "redis://elsewhere"
    assert variables["BOXOFFICE_HOLD_TTL_SECONDS"] == "2"
    assert "PATH" in variables


def test_a_database_is_embedded_unless_its_url_is_set() -> None:
    provided = Provided.model_validate({"stock_database_url": "postgresql+psycopg://elsewhere/s"})
    assert provided.database_url("stock_svc") == "postgresql+psycopg://elsewhere/s"
    assert provided.database_url("auth_svc") is None
