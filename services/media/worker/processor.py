"""Processing of uploaded photos by the worker."""

import asyncio
import tempfile
from typing import BinaryIO

from photomesh.media.v1.events_pb2 import MediaUploaded

from services.chassis.telemetry import logs
from services.media.pipeline.outputs import (
    VARIANT_STEPS,
    Failure,
    Made,
    Rendition,
    Unprocessable,
    object_name,
)
from services.media.pipeline.renderers import Renderers
from services.media.storage import OriginalChanged, Storage
from services.media.store import Media, MediaStore, State
from services.media.worker.progress import Progress

_log = logs.logger(__name__)

_USUAL_BYTES = 64 * 1024 * 1024
"""Larger originals are processed one at a time, while smaller ones overtake them: they take long to
fetch, and need up to 4 GiB of disk space."""


class Processor:
    """Renders photos and stores their variants.

    Processing may be repeated after a crash at any point: the same original gives the same variants
    under the same keys, stored variants are not made again, and only one run publishes
    MediaProcessed.
    """

    def __init__(
        self,
        store: MediaStore,
        storage: Storage,
        renderers: Renderers,
        *,
        at_a_time: int,
        progress_seconds: float,
    ) -> None:
        """Creates a processor.

        Args:
            store: the media.
            storage: their files.
            renderers: make the variants.
            at_a_time: how many photos are processed at a time, including fetching and storing.
            progress_seconds: the shortest interval between two writes of a photo's progress.
        """
        self._store = store
        self._storage = storage
        self._renderers = renderers
        self._room = asyncio.Semaphore(at_a_time)
        self._room_for_huge = asyncio.Semaphore(1)
        self._progress_seconds = progress_seconds

    async def process(self, event: MediaUploaded) -> None:
        """Processes a media item until it is READY or FAILED. Does nothing if it already is.

        Raises:
            Unavailable: a dependency is unavailable; the photo is not the cause.
        """
        async with self._room:
            media = await self._store.begin(event.media_id)
            if media is None:
                _log.info("media.skipped", media_id=event.media_id)
                return
            if media.size_bytes <= _USUAL_BYTES:
                await self._bring_to_its_end(media)
                return
        async with self._room_for_huge:
            await self._bring_to_its_end(media)

    async def _bring_to_its_end(self, media: Media) -> None:
        try:
            # The file has no name, so the kernel frees it even if the worker is killed.
            with tempfile.TemporaryFile() as original:
                await self._fetch(media, original)
                rendition = await self._make(media, original)
        except Unprocessable as error:
            if media.state is State.READY:
                # Keeps the old variants, because the current steps cannot make new ones.
                _log.warning("remake.failed", media_id=media.media_id, failure=error.failure)
                return
            # A result, not a dead letter: the file is the problem, not the event.
            await self._store.mark_failed(media, error.failure)
            _log.info("media.failed", media_id=media.media_id, failure=error.failure)
            return
        # After all variants are stored, so that nobody sees a variant that does not exist yet.
        await self._store.mark_ready(media, rendition)
        _log.info("media.ready", media_id=media.media_id)

    async def _make(self, media: Media, original: BinaryIO) -> Rendition:
        """Makes the variants of an item, and stores each as soon as it is made."""
        # Skips variants that an earlier run made, or another recipe with the same steps.
        present = await self._storage.variants(media.media_id, media.owner_id)
        storing: list[asyncio.Task[None]] = []
        async with Progress(self._store, media, seconds=self._progress_seconds) as progress:

            async def keep(made: Made) -> None:
                if made.variant is not None:
                    await self._storage.put_variant(
                        media.media_id, media.owner_id, made.variant, made.content
                    )
                progress.add(made.step)

            progress.add(
                *(step for step, makes in VARIANT_STEPS.items() if object_name(*makes) in present)
            )
            try:
                rendition = await self._renderers.render(
                    original,
                    present,
                    lambda made: storing.append(asyncio.create_task(keep(made))),
                )
                await asyncio.gather(*storing)
            finally:
                for task in storing:
                    task.cancel()
                await asyncio.gather(*storing, return_exceptions=True)
        return rendition

    async def _fetch(self, media: Media, into: BinaryIO) -> None:
        assert media.etag is not None  # noqa: S101 -- It is set from UPLOADED on.
        try:
            await self._storage.fetch_original(media.media_id, media.owner_id, media.etag, into)
        except OriginalChanged:
            # The client replaced the file after it was checked. If it were rendered, two runs could
            # store variants of different photos under the same keys, which caches keep.
            raise Unprocessable(Failure.CORRUPT) from None
