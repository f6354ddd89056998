"""64-bit, time-ordered ids: 41 bits of milliseconds since 2026, 13 of shard, 10 of sequence.

The database generates ids (`next_id(shard)`, see migrations/), so that processes cannot generate
the same id. This module decodes them. Ids stay positive until the year 2060.
"""

from datetime import UTC, datetime

EPOCH_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z in milliseconds since 1970."""

SHARDS = 1 << 13
"""The number of logical shards."""


def shard_of(identifier: int) -> int:
    """Returns the logical shard, 0 to 8191. All data of an owner has the shard of the owner."""
    return identifier >> 10 & (SHARDS - 1)


def age_of(identifier: int) -> int:
    """Returns the creation time in milliseconds since 2026."""
    return identifier >> 23


def created_at(identifier: int) -> datetime:
    """Returns the creation time in UTC, with millisecond precision."""
    return datetime.fromtimestamp((age_of(identifier) + EPOCH_MS) / 1000, UTC)


def least_id(moment: datetime) -> int:
    """Returns a lower bound of all ids that any shard generates at or after a moment."""
    return (int(moment.timestamp() * 1000) - EPOCH_MS) << 23
