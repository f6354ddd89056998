"""The settings of the media service, of its worker, and of `services.media.reprocess`."""

import os

from pydantic import SecretStr

from services.chassis.config import DatabaseSettings, Group, KafkaSettings, MeshSettings
from services.domain.cdn import CdnSettings


class StorageSettings(Group):
    """The connection to S3."""

    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"
    originals_bucket: str = "photomesh-originals"
    media_bucket: str = "photomesh-media"


class MediaSettings(MeshSettings, DatabaseSettings, KafkaSettings, StorageSettings, CdnSettings):
    """The settings of the media service."""


class ReprocessSettings(DatabaseSettings, KafkaSettings):
    """The settings of `services.media.reprocess`."""

    log_level: str = "INFO"


class MediaWorkerSettings(MeshSettings, DatabaseSettings, KafkaSettings, StorageSettings):
    """The settings of the media worker."""

    renderers: int = os.cpu_count() or 1
    """How many photos are rendered at a time."""
    renderer_memory_mib: int = 320
    """The memory limit of a renderer. A phone's photo needs about 200 MiB."""
    renderer_large_memory_mib: int = 560
    """The memory limit for a large picture, of which one is rendered at a time. It suffices for the
    guaranteed picture sizes (GUARANTEED_PIXELS in services/media/pipeline/header.py), and with two
    renderers, the worker's processes stay below 1 GiB."""
    renderer_cpu_seconds: int = 30
    """The CPU time limit for one photo."""
    renderer_wall_seconds: float = 120.0
    """The wall-clock limit for one photo, for a machine that is busy with other work."""
    progress_seconds: float = 0.25
    """The minimum interval between two writes of a photo's progress; watchers poll no more often.
    0: every step is written immediately."""
