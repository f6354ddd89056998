"""The fan-out worker's settings."""

from services.chassis.config import (
    Addresses,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)


class FanoutSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_graph: Addresses
    peer_post: Addresses
    fanout_chunk_size: int = 25_000
    """Maximum number of followers processed for one event. Larger audiences are divided into chunks
    of this size.

    The default is a quarter of the largest audience that posts are pushed to, so that all its
    chunks are in progress at once: between two chunks, the cache would be idle for 0.1 s.
    """
    fanout_backfill: int = 50
    """How many of an author's latest posts a new follow adds to a feed."""
