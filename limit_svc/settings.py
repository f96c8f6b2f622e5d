"""Settings of limit_svc, next to those that all services share."""

from pathlib import Path

from pydantic import Field

from mesh.paths import CONTRACT
from mesh.settings import MeshSettings


class Settings(MeshSettings):
    limit_contract: Path | None = Field(
        None, description="Compiled contract that limit_svc reads limits from; unset: the build's."
    )

    @property
    def contract(self) -> Path:
        return self.limit_contract or CONTRACT

    def needs(self) -> tuple[str, ...]:
        return ("redis_url",)
