"""The whole mesh, started with `make up`, and clients of its gateway."""

from collections.abc import Iterator

import httpx
import pytest

from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, running_mesh


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that leave arbitrary data in the shared mesh come last."""
    items.sort(key=lambda item: "e2e/test_fuzz" in item.nodeid)


@pytest.fixture(scope="package")
def mesh() -> Iterator[RunningMesh]:
    """`make up` with high rate limits and a low password cost, as a separate process."""
    with running_mesh() as running:
        yield running


@pytest.fixture
def api(mesh: RunningMesh) -> Iterator[Api]:
    with httpx.Client(base_url=mesh.url, timeout=60) as client:
        yield Api(client)


@pytest.fixture
def admin(api: Api) -> Api:
    return api.sign_up(admin_secret=ADMIN_SECRET)


@pytest.fixture
def customer(api: Api) -> Api:
    return api.sign_up()
