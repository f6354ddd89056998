"""The post service's settings."""

from services.common.config import (
    Address,
    CacheSettings,
    CdnSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)


class PostSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings, CdnSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Address
    peer_media: Address
    peer_graph: Address
    sweep_seconds: float = 15.0
    """How often, on average, the sweep settles posts whose events were missed."""
