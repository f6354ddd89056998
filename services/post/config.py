"""The post service's settings."""

from services.chassis.config import (
    Addresses,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)
from services.domain.cdn import CdnSettings


class PostSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings, CdnSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Addresses
    peer_media: Addresses
    peer_graph: Addresses
    sweep_seconds: float = 15.0
    """How often, on average, the sweep resolves posts whose events were missed."""
