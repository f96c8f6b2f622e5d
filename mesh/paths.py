"""Paths in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
BUILD = ROOT / "build"
STUBS = BUILD / "stubs"
CONTRACT = BUILD / "contract.binpb"
"""The compiled contract: a FileDescriptorSet with imports and comments."""
BENCH_PACKAGES = BUILD / "bench" / "packages"
"""The packages that only benchmarks and pictures need: `launcher/bootstrap.py --bench` installs
them."""
