"""Settings of limit_svc."""

from pathlib import Path

from pydantic import Field

from mesh.paths import CONTRACT
from mesh.settings import MeshSettings


class Settings(MeshSettings):
    limit_contract: Path | None = Field(
        None, description="Compiled contract with the rate limits. Unset: the one in build/."
    )

    @property
    def contract(self) -> Path:
        return self.limit_contract or CONTRACT

    def needs(self) -> tuple[str, ...]:
        return ("redis_url",)
