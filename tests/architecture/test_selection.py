"""`make test CHANGED=1` runs every test that a change can break."""

import pytest

from mesh.paths import ROOT
from testing import selection

FILES = {
    "tests/architecture/test_layout.py",
    "tests/auth_svc/test_accounts.py",
    "tests/booking_svc/webhooks/test_webhooks.py",
    "tests/e2e/test_stock.py",
    "tests/gateway/test_config.py",
    "tests/mesh/test_money.py",
    "tests/stock_svc/test_reserve.py",
    "tests/stock_svc/test_service.py",
}
ALWAYS = {"tests/architecture/test_layout.py"}
OF_THE_MESH = ALWAYS | {"tests/e2e/test_stock.py"}


@pytest.mark.parametrize(
    ("changed", "needed"),
    [
        ([], set()),
        (["docs/stock.md"], ALWAYS),
        (["tests/mesh/test_money.py"], ALWAYS | {"tests/mesh/test_money.py"}),
        (
            ["booking_svc/webhooks/delivery_worker.py"],
            OF_THE_MESH | {"tests/booking_svc/webhooks/test_webhooks.py"},
        ),
        (["envoy/gateway/routes.py"], OF_THE_MESH | {"tests/gateway/test_config.py"}),
        (
            ["tests/stock_svc/conftest.py"],
            ALWAYS | {"tests/stock_svc/test_reserve.py", "tests/stock_svc/test_service.py"},
        ),
        # What no import shows needs everything.
        (["protos/boxoffice/stock/v1/stock.proto"], FILES),
        (["stock_svc/deleted.py"], FILES),
        (["pyproject.toml", "docs/stock.md"], FILES),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_a_change_selects_the_tests_that_import_it(changed: list[str], needed: set[str]) -> None:
    assert selection.affected(changed, FILES) == needed


def test_every_package_is_in_the_graph() -> None:
    folders = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    folders |= {file.parent.name for file in ROOT.glob("envoy/*/__init__.py")}
    assert set(selection.PACKAGES) >= folders
