"""The fan-out's settings."""

from services.common.config import Address, CacheSettings, KafkaSettings, MeshSettings


class FanoutSettings(MeshSettings, CacheSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_graph: Address
    peer_post: Address
