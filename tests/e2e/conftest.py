"""The whole mesh, started with `make up`, and clients of its gateway."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from testing.error_tracker import ErrorTracker, error_tracker
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, running_mesh
from testing.smtp_server import MailServer, mail_server_aside
from testing.trace_collector import TraceCollector, trace_collector

ADMIN_SECRET_CANARY = "kanarie-geheim-van-de-beheerder-0001"


# They leave other keys and arbitrary data in the shared mesh.
_LAST = ("test_key_rotation.py", "test_fuzz.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name in _LAST)


@pytest.fixture(scope="package")
def mesh() -> Iterator[RunningMesh]:
    """`make up` with high rate limits and a low password cost, as a separate process."""
    with running_mesh() as running:
        yield running


@dataclass(frozen=True)
class ObservedMesh:
    """A mesh and what it sends to its surroundings."""

    mesh: RunningMesh
    traces: TraceCollector
    mails: MailServer
    reports: ErrorTracker


@pytest.fixture(scope="package")
def observed() -> Iterator[ObservedMesh]:
    """A separate mesh that traces every call, reports bugs, sends mails and logs at DEBUG."""
    with (
        trace_collector() as traces,
        mail_server_aside() as mails,
        error_tracker() as reports,
        running_mesh(
            BOXOFFICE_SMTP_URL=f"smtp://127.0.0.1:{mails.port}",
            BOXOFFICE_SENTRY_DSN=reports.dsn,
            BOXOFFICE_LOG_LEVEL="DEBUG",
            BOXOFFICE_TRACE_ENDPOINT=traces.url,
            BOXOFFICE_TRACE_SAMPLE="1",
            BOXOFFICE_ADMIN_REGISTRATION_SECRET=ADMIN_SECRET_CANARY,
        ) as mesh,
    ):
        yield ObservedMesh(mesh, traces, mails, reports)


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
