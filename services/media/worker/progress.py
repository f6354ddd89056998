"""Writes a media item's finished steps to the database, for its watchers."""

import asyncio
import contextlib

from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs
from services.media.store import Media, MediaStore

_log = logs.logger(__name__)


class Progress:
    """Collects the finished steps of one media item, and writes them in batches.

    Writes are best effort: they are skipped while the database is unavailable, and for the last
    steps, which the final state of the item implies.
    """

    def __init__(self, store: MediaStore, media: Media, *, seconds: float) -> None:
        """`seconds`: the minimum interval between two writes."""
        self._store = store
        self._media = media
        self._seconds = seconds
        self._steps: set[str] = set()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()

    async def __aenter__(self) -> "Progress":
        self._writing = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed.set()
        self._changed.set()
        # Waits instead of canceling: the pool would have to discard the connection of a canceled
        # query.
        await self._writing

    def add(self, *steps: str) -> None:
        """Records finished steps."""
        self._steps.update(steps)
        self._changed.set()

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            if self._closed.is_set():
                return
            self._changed.clear()
            try:
                await self._store.add_steps(self._media, self._steps)
            except Unavailable as error:
                _log.warning("progress.blocked", media_id=self._media.media_id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._closed.wait()
