"""A mesh for one benchmark, with very high rate limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from launcher.protos import compile_contract


@asynccontextmanager
async def a_mesh(home: str, **variables: str) -> "AsyncIterator[Mesh]":
    """Starts a mesh as `make up` does; its ports come from the environment."""
    settings = load(MeshSettings, home=home, rate_limit_scale=100_000)
    print("starting a mesh …", flush=True)
    async with Mesh(
        settings, variables={"BOXOFFICE_RATE_LIMIT_SCALE": "100000", **variables}
    ) as mesh:
        yield mesh


# The imports below need the generated stubs.
compile_contract()

from launcher.mesh import Mesh  # noqa: E402
from launcher.settings_listing import load  # noqa: E402
from mesh.settings import MeshSettings  # noqa: E402
