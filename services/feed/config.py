"""The feed service's settings."""

from pathlib import Path

from services.chassis.config import Address, Addresses, CacheSettings, MeshSettings


class FeedSettings(MeshSettings, CacheSettings):
    """Read from PHOTOMESH_* variables."""

    rest_listen: Address
    """The address for REST requests from the gateway; see services/chassis/rpc/rest.py."""
    peer_graph: Addresses
    peer_post: Addresses
    page_key_file: Path
    """Contains the secret for page tokens, in hexadecimal."""
    valkey_timeout_seconds: float = 0.2
    """How long readers wait for a stalled cache before the database is queried."""
