"""How long the calls of waiting rooms take: histograms with buckets that grow by half an octave.

A percentile is the upper bound of its bucket, at most 42 % above the true one.
"""

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

SLOT = timedelta(seconds=10)
"""Arrivals and durations are counted by slots of this length, from the Unix epoch on."""

JOIN = "JoinQueue"
POLL = "GetQueuePosition"
PLACE = "PlaceBooking"

_PER_OCTAVE = 2
LAST_BUCKET = 30
"""Of 32.8 s and more."""


def slot_of(time: datetime) -> datetime:
    """The beginning of the slot of a time."""
    seconds = int(SLOT.total_seconds())
    return datetime.fromtimestamp(int(time.timestamp()) // seconds * seconds, UTC)


def bucket_of(seconds: float) -> int:
    """The bucket of a duration: 0 up to a millisecond."""
    milliseconds = seconds * 1000
    if milliseconds <= 1:
        return 0
    return min(LAST_BUCKET, math.ceil(_PER_OCTAVE * math.log2(milliseconds) - 1e-9))


def upper_bound(bucket: int) -> float:
    """Of a bucket, in milliseconds."""
    return float(2 ** (bucket / _PER_OCTAVE))


def percentile(histogram: Mapping[int, int], percent: int) -> float:
    """The upper bound in milliseconds of the bucket with the percentile by nearest rank.

    0 for an empty histogram.
    """
    rank = -(-sum(histogram.values()) * percent // 100)
    reached = 0
    for bucket, count in sorted(histogram.items()):
        reached += count
        if reached >= rank:
            return upper_bound(bucket) if reached else 0.0
    return 0.0


class Durations:
    """Counts calls by event, name and bucket. `take` empties it, to add them to the database."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[UUID, str, int]] = Counter()

    def add(self, event_id: UUID, call: str, seconds: float) -> None:
        """Only for events that have a room, of which there are few."""
        self._counts[event_id, call, bucket_of(seconds)] += 1

    def take(self) -> Counter[tuple[UUID, str, int]]:
        counts, self._counts = self._counts, Counter()
        return counts

    def put_back(self, counts: Counter[tuple[UUID, str, int]]) -> None:
        """Keeps counts that could not be stored."""
        self._counts.update(counts)
