"""Paths in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
BUILD = ROOT / "build"
STUBS = BUILD / "stubs"
CONTRACT = BUILD / "contract.binpb"
"""The compiled contract: a FileDescriptorSet with imports and comments."""
