"""The graph service's settings."""

from services.common.config import Address, DatabaseSettings, KafkaSettings, MeshSettings


class GraphSettings(MeshSettings, DatabaseSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Address
    follow_limit: int = 7_500
    """How many accounts one may follow."""
