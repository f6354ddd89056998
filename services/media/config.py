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


class ReprocessSettings(DatabaseSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    log_level: str = "INFO"


class MediaWorkerSettings(MeshSettings, DatabaseSettings, KafkaSettings, StorageSettings):
    """Read from PHOTOMESH_* variables."""

    renderers: int = os.cpu_count() or 1
    """How many photos are rendered at a time."""
    renderer_memory_mib: int = 320
    """How much memory a renderer may allocate. A phone's photo needs about 200."""
    renderer_large_memory_mib: int = 560
    """How much it may allocate for a large picture, of which there is one at a time. With two
    renderers the worker's processes stay below 1 GiB so, and there is room for the pictures that
    the limits promise (SURE_PIXELS in services/media/pipeline/header.py)."""
    renderer_cpu_seconds: int = 30
    """How long one photo may keep its core busy."""
    renderer_wall_seconds: float = 120.0
    """How long one photo may take on a machine that is busy with other things."""
    progress_seconds: float = 0.25
    """How often at most a photo's steps are written down for those who watch it; whoever watches
    looks no oftener. 0: each step by itself."""
