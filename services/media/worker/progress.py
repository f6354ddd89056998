"""Writes a media item's finished steps to the database, for its watchers."""

import asyncio
import contextlib

from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs
from services.media.store import Media, MediaStore

_log = logs.logger(__name__)


class Progress:
    """Collects the finished steps of one media item, and writes them in batches.

    Writes are best effort: while the database is unavailable they are skipped, and the final state
    of the item implies the last steps.
    """

    def __init__(self, store: MediaStore, media: Media, *, seconds: float) -> None:
        """Takes the shortest interval between two writes, in seconds."""
        self._store = store
        self._media = media
        self._seconds = seconds
        self._steps: set[str] = set()
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    async def __aenter__(self) -> "Progress":
        self._writing = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._news.set()
        # Waits instead of cancelling: a cancelled query would cost the pool its connection.
        await self._writing

    def add(self, *steps: str) -> None:
        """Records finished steps."""
        self._steps.update(steps)
        self._news.set()

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            if self._over.is_set():
                return
            self._news.clear()
            try:
                await self._store.add_steps(self._media, self._steps)
            except Unavailable as error:
                _log.warning("progress.blocked", media_id=self._media.media_id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._over.wait()
