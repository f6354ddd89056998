"""What the worker does with an uploaded photo."""

import asyncio
import tempfile
from typing import BinaryIO

from photomesh.media.v1.events_pb2 import MediaUploaded

from services.common import logs
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
"""Larger originals are processed one at a time, and overtaken by others meanwhile: they take long
to fetch, and up to 4 GiB of the disk."""


class Processor:
    """Renders photos and stores their variants.

    Everything may happen again after a crash at any moment: the same original gives the same
    variants under the same keys, what is stored is not made again, and only one run's end is told.
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
        """Takes how many photos are at hand at a time, those being fetched or stored too."""
        self._store = store
        self._storage = storage
        self._renderers = renderers
        self._room = asyncio.Semaphore(at_a_time)
        self._room_for_huge = asyncio.Semaphore(1)
        self._progress_seconds = progress_seconds

    async def process(self, event: MediaUploaded) -> None:
        """Brings a media item to its end, READY or FAILED; nothing if it is there already.

        Raises:
            Unavailable: a part is away; nothing is wrong with the photo.
        """
        async with self._room:
            media = await self._store.begin(event.media_id)
            if media is None:
                _log.info("nothing to process", media_id=event.media_id)
                return
            if media.size_bytes <= _USUAL_BYTES:
                await self._bring_to_its_end(media)
                return
        async with self._room_for_huge:
            await self._bring_to_its_end(media)

    async def _bring_to_its_end(self, media: Media) -> None:
        try:
            # It has no name, so that nothing is left of it when the worker is killed.
            with tempfile.TemporaryFile() as original:
                await self._fetch(media, original)
                rendition = await self._make(media, original)
        except Unprocessable as error:
            if media.state is State.READY:
                # What it has stays, rather than what today's steps would no longer give.
                _log.warning("not remade", media_id=media.media_id, failure=error.failure)
                return
            # An outcome, not a dead letter: it is the file that is wrong, not the message.
            await self._store.mark_failed(media, error.failure)
            _log.info("failed", media_id=media.media_id, failure=error.failure)
            return
        # Only now that every variant is there may anybody learn of them.
        await self._store.mark_ready(media, rendition)
        _log.info("ready", media_id=media.media_id)

    async def _make(self, media: Media, original: BinaryIO) -> Rendition:
        """Makes and stores the variants of an item, each as soon as it is made."""
        # What a run before made, or another recipe that made it in the same way, is not made again.
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
            # The client sent another file after this one was checked. Were it rendered, two runs
            # could store variants of different photos under the same, cached, keys.
            raise Unprocessable(Failure.CORRUPT) from None
