"""The post service's settings."""

from services.chassis.config import (
    Address,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)
from services.domain.cdn import CdnSettings


class PostSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings, CdnSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Address
    peer_media: Address
    peer_graph: Address
    sweep_seconds: float = 15.0
    """How often, on average, the sweep resolves posts whose events were missed."""
