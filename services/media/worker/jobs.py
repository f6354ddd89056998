"""Periodic jobs of the media worker.

The files of deleted media are removed twice: immediately, and again 20 minutes later. The second
removal catches variants that a worker was still making, and files uploaded with a form that was
still valid. No file can arrive after it. Both are idempotent.
"""

from services.chassis.telemetry import logs
from services.media.storage.client import S3
from services.media.store import Media, MediaStore

SWEEP_SECONDS = 60.0
"""The mean pause between sweeps."""

_BATCH = 100

_log = logs.logger(__name__)


async def sweep_deleted(store: MediaStore, s3: S3) -> None:
    """Removes the files of all items whose second removal is due.

    Raises:
        Unavailable: the database or S3 is unavailable; the next sweeps remove the rest.
    """
    while media := await store.take_to_erase(_BATCH):
        for item in media:
            await erase(s3, item)
            await store.mark_erased(item)
        if len(media) < _BATCH:
            return


async def erase(s3: S3, media: Media) -> None:
    """Removes the files of one item.

    Raises:
        Unavailable: S3 is unavailable.
    """
    removed = await s3.erase(media.key_prefix)
    _log.info("media.erased", media_id=media.media_id, objects=removed)
