"""The handlers of the events that the media worker consumes."""

import asyncio

from photomesh.media.v1.events_pb2 import MediaDeleted, MediaUploaded

from services.chassis.telemetry import logs
from services.media.storage.client import S3
from services.media.store import MediaStore, State
from services.media.worker.jobs import erase
from services.media.worker.processor import Processor

_log = logs.logger(__name__)

_USUAL_BYTES = 64 * 1024 * 1024
"""Larger originals are processed one at a time, without delaying smaller ones: they take long to
fetch, and need up to 4 GiB of disk space."""


class MediaEvents:
    """Handles uploads and deletions. Handlers raise Unavailable if a dependency is unavailable."""

    def __init__(self, store: MediaStore, s3: S3, processor: Processor, *, at_a_time: int) -> None:
        """`at_a_time`: how many photos are fetched, rendered or stored concurrently."""
        self._store = store
        self._s3 = s3
        self._processor = processor
        self._slots = asyncio.Semaphore(at_a_time)
        self._slot_for_huge = asyncio.Semaphore(1)

    async def on_media_uploaded(self, event: MediaUploaded) -> None:
        """Processes a media item until it is READY or FAILED. Does nothing if it already is."""
        async with self._slots:
            media = await self._store.begin(event.media_id)
            if media is None:
                _log.info("media.skipped", media_id=event.media_id)
                return
            if media.size_bytes <= _USUAL_BYTES:
                await self._processor.process(media)
                return
        async with self._slot_for_huge:
            await self._processor.process(media)

    async def on_media_deleted(self, event: MediaDeleted) -> None:
        """Removes the files of an item that was just deleted."""
        media = await self._store.media(event.media_id)
        # Checks the database, so that a wrong event cannot remove files of a live item.
        if media is not None and media.state is State.DELETED:
            await erase(self._s3, media)
