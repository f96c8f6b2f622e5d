"""The demo kills only the named processes, and only those that the launcher started."""

from pathlib import Path

import pytest

from demo import kills
from demo.errors import DemoError
from demo.kills import Kills


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("redis", ("redis",)),
        ("redis-frozen, redis-flushed", ("redis-frozen", "redis-flushed")),
        ("stock_svc,redis", ("stock_svc", "redis")),
    ],
)
def test_names_are_parsed(text: str, names: tuple[str, ...]) -> None:
    assert kills.parse(text) == names


@pytest.mark.parametrize("text", ["postgres", "redis-eaten", "stock_svc,frozen"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DemoError, match="--kill takes"):
        kills.parse(text)


def test_a_redis_that_the_launcher_did_not_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="There is no redis"):
        Kills(["redis-frozen"], home=tmp_path, url="http://127.0.0.1:9").check()
