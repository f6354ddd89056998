"""Removes the files of deleted media."""

from photomesh.media.v1.events_pb2 import MediaDeleted

from services.chassis.telemetry import logs
from services.media.storage import Storage
from services.media.store import Media, MediaStore, State

SWEEP_SECONDS = 60.0
"""The mean pause between sweeps."""

_SWEEP_BATCH = 100

_log = logs.logger(__name__)


class Eraser:
    """Removes files twice: when an item is deleted, and again 20 minutes later.

    The second removal catches variants that a worker was still making, and files that were uploaded
    with a form that was still valid. No file can arrive after it. Both are idempotent.
    """

    def __init__(self, store: MediaStore, storage: Storage) -> None:
        self._store = store
        self._storage = storage

    async def on_media_deleted(self, event: MediaDeleted) -> None:
        """Removes the files of an item that was just deleted.

        Raises:
            Unavailable: the database or S3 is unavailable; call again.
        """
        media = await self._store.media(event.media_id)
        # Checks the database, so that a wrong event cannot remove files of a live item.
        if media is not None and media.state is State.DELETED:
            await self._erase(media)

    async def sweep(self) -> None:
        """Removes the files of all items whose second removal is due.

        Raises:
            Unavailable: the database or S3 is unavailable; the next sweeps remove the rest.
        """
        while media := await self._store.take_to_erase(_SWEEP_BATCH):
            for item in media:
                await self._erase(item)
                await self._store.mark_erased(item)
            if len(media) < _SWEEP_BATCH:
                return

    async def _erase(self, media: Media) -> None:
        removed = await self._storage.erase(media.media_id, media.owner_id)
        _log.info("media.erased", media_id=media.media_id, objects=removed)
