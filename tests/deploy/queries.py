"""Which metrics a PromQL expression reads."""

import re

_METRIC = re.compile(r"\b(?:up|(?:boxoffice|envoy|process)_[a-z0-9_]+)\b")
_LABELS = re.compile(r"\{[^}]*\}|\bby \([^)]*\)")


def metrics_of(query: str) -> set[str]:
    return set(_METRIC.findall(_LABELS.sub("", query)))
