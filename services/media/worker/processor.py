"""Makes the variants of one photo. Used by the handler of MediaUploaded, see events.py."""

import asyncio
import tempfile
from typing import BinaryIO

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
from services.media.storage.originals import OriginalChanged, Originals
from services.media.storage.variants import Variants
from services.media.store import Media, MediaStore, State
from services.media.worker.progress import Progress

_log = logs.logger(__name__)


class Processor:
    """Renders photos and stores their variants.

    Processing may be repeated after a crash at any point: the same original gives the same variants
    under the same keys, stored variants are not made again, and only one run publishes
    MediaProcessed.
    """

    def __init__(
        self,
        store: MediaStore,
        originals: Originals,
        variants: Variants,
        renderers: Renderers,
        *,
        progress_seconds: float,
    ) -> None:
        """`progress_seconds`: the minimum interval between two writes of a photo's progress."""
        self._store = store
        self._originals = originals
        self._variants = variants
        self._renderers = renderers
        self._progress_seconds = progress_seconds

    async def process(self, media: Media) -> None:
        """Processes a media item until it is READY or FAILED.

        Raises:
            Unavailable: a dependency is unavailable; the photo is not the cause.
        """
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
            # Not an error, which would lead to a dead letter: the file is invalid, not the event.
            await self._store.mark_failed(media, error.failure)
            _log.info("media.failed", media_id=media.media_id, failure=error.failure)
            return
        # After all variants are stored, so that no client sees a variant that does not exist yet.
        await self._store.mark_ready(media, rendition)
        _log.info("media.ready", media_id=media.media_id)

    async def _make(self, media: Media, original: BinaryIO) -> Rendition:
        """Makes the variants of an item, and stores each as soon as it is made."""
        # Skips variants that an earlier run made, or another recipe with the same steps.
        present = await self._variants.sizes(media.key_prefix)
        storing: list[asyncio.Task[None]] = []
        async with Progress(self._store, media, seconds=self._progress_seconds) as progress:

            async def store(made: Made) -> None:
                if made.variant is not None:
                    await self._variants.put(media.key_prefix, made.variant, made.content)
                progress.add(made.step)

            progress.add(
                *(step for step, makes in VARIANT_STEPS.items() if object_name(*makes) in present)
            )
            try:
                rendition = await self._renderers.render(
                    original,
                    present,
                    lambda made: storing.append(asyncio.create_task(store(made))),
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
            await self._originals.fetch(media.key_prefix, media.etag, into)
        except OriginalChanged:
            # The client replaced the file after it was checked. If it were rendered, two runs could
            # store variants of different photos under the same keys, which caches keep.
            raise Unprocessable(Failure.CORRUPT) from None
