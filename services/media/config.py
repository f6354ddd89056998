"""The settings of the media service and of its worker."""

import os

from services.common.config import (
    CdnSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
    StorageSettings,
)


class MediaSettings(MeshSettings, DatabaseSettings, KafkaSettings, StorageSettings, CdnSettings):
    """Read from PHOTOMESH_* variables."""


class MediaWorkerSettings(MeshSettings, DatabaseSettings, KafkaSettings, StorageSettings):
    """Read from PHOTOMESH_* variables."""

    renderers: int = os.cpu_count() or 1
    """How many photos are rendered at a time; each keeps one core busy."""
    renderer_memory_mib: int = 1024
    """How much memory one renderer may allocate. 100 megapixels need about 700."""
    renderer_cpu_seconds: int = 30
    """How long one photo may keep its core busy."""
    renderer_wall_seconds: float = 120.0
    """How long one photo may take on a machine that is busy with other things."""
