"""Measures how long the process's certificate is still valid. A process reads it once, at its start."""

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from mesh.observability import metrics


@dataclass(frozen=True, eq=False)
class Certificate:
    """A certificate chain; `end` is when its first certificate expires, in seconds since 1970."""

    process: str
    end: float


def watch(folder: Path, process: str) -> Certificate:
    """Measures `<process>.pem` while the returned object lives."""
    chain = x509.load_pem_x509_certificates((folder / f"{process}.pem").read_bytes())
    certificate = Certificate(process, min(part.not_valid_after_utc.timestamp() for part in chain))
    _measure(certificate)
    return certificate


def _remaining(certificate: Certificate) -> list[tuple[str, float]]:
    return [(certificate.process, certificate.end - time.time())]


_measure = metrics.measured(
    "certificate_remaining_seconds",
    "Time until the certificate with which the process serves expires.",
    _remaining,
    label="process",
)
