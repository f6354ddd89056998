"""The fan-out's settings."""

from services.common.config import (
    Address,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)


class FanoutSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_graph: Address
    peer_post: Address
    fanout_chunk_size: int = 25_000
    """Up to how many followers an event is handled at once; more are cut into chunks of as many.

    A quarter of the largest audience that is pushed to, so that all of it is under way at once:
    where a chunk ends and the next begins, the cache waits for a tenth of a second.
    """
    fanout_backfill: int = 50
    """How many of an author's last posts come into a feed with a new follow."""
