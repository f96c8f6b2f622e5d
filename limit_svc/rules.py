"""The buckets that there are, from the compiled contract, read again when it changes."""

import asyncio
import logging
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from mesh.rpc import policy
from mesh.rpc.limits import Bucket, buckets
from mesh.rpc.policy import PolicyError

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


class Rules:
    """Buckets by name. Raises PolicyError or OSError for a contract that cannot be read at first."""

    def __init__(self, contract: Path, scale: float) -> None:
        self._contract = contract
        self._scale = scale
        self._seen = self._version()
        self._buckets = self._read()

    def bucket(self, name: str) -> Bucket | None:
        return self._buckets.get(name)

    async def follow(self) -> None:
        """Reads the contract again whenever it has changed; one that is wrong changes nothing."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        try:
            version = self._version()
            if version == self._seen:
                return
            self._seen = version
            self._buckets = self._read()
        except (OSError, DecodeError, PolicyError):
            _log.exception("the contract cannot be read; the limits stay as they were")
        else:
            _log.info("limits read again", extra={"buckets": len(self._buckets)})

    def _version(self) -> tuple[int, int]:
        found = self._contract.stat()
        return found.st_mtime_ns, found.st_ino

    def _read(self) -> dict[str, Bucket]:
        files = descriptor_pb2.FileDescriptorSet.FromString(self._contract.read_bytes())
        return {
            bucket.name: bucket.scaled(self._scale)
            for each in policy.of_contract(files).values()
            for bucket in buckets(each)
        }
