"""The buckets of all RPCs, from the compiled contract; reloaded when the file changes."""

import asyncio
import logging
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from mesh.rpc import policy
from mesh.rpc.limits import Bucket, Scales, buckets
from mesh.rpc.policy import PolicyError

_log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


class Rules:
    """Buckets by name. The constructor raises PolicyError or OSError for an unreadable contract."""

    def __init__(self, contract: Path, scales: Scales) -> None:
        self._contract = contract
        self._scales = scales
        self._seen = self._version()
        self._buckets = self._read()

    def bucket(self, name: str) -> Bucket | None:
        return self._buckets.get(name)

    async def follow(self) -> None:
        """Reloads the contract whenever its file changes. Runs until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            self.reload()

    def reload(self) -> None:
        """Loads the contract if the file has changed. An invalid one leaves the buckets as is."""
        try:
            version = self._version()
            if version == self._seen:
                return
            self._seen = version
            self._buckets = self._read()
        except (OSError, DecodeError, PolicyError):
            _log.exception("the contract cannot be read; the limits stay unchanged")
        else:
            _log.info("limits reloaded", extra={"buckets": len(self._buckets)})

    def _version(self) -> tuple[int, int]:
        file = self._contract.stat()
        return file.st_mtime_ns, file.st_ino

    def _read(self) -> dict[str, Bucket]:
        files = descriptor_pb2.FileDescriptorSet.FromString(self._contract.read_bytes())
        return {
            bucket.name: bucket.scaled(self._scales)
            for method in policy.of_contract(files).values()
            for bucket in buckets(method)
        }
