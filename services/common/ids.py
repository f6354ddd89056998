"""64-bit, time-ordered ids: 41 bits of milliseconds since 2026, 13 of shard, 10 of sequence.

The database makes them (`next_id(shard)`, see migrations/), so that two processes never make
the same. Here they are taken apart. An id stays positive until the year 2060.
"""

from datetime import UTC, datetime

EPOCH_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z in milliseconds since 1970."""

SHARDS = 1 << 13
"""How many logical shards there are."""


def shard_of(identifier: int) -> int:
    """Returns the logical shard, 0 to 8191, of everything that the id's owner owns."""
    return identifier >> 10 & (SHARDS - 1)


def age_of(identifier: int) -> int:
    """Returns when the id was made, in milliseconds since 2026: what sorts a timeline."""
    return identifier >> 23


def created_at(identifier: int) -> datetime:
    """Returns when the id was made, to the millisecond, in UTC."""
    return datetime.fromtimestamp((age_of(identifier) + EPOCH_MS) / 1000, UTC)


def least_id(moment: datetime) -> int:
    """Returns an id that is smaller than every one made at a moment or after, on any shard."""
    return (int(moment.timestamp() * 1000) - EPOCH_MS) << 23
