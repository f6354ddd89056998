"""Tells those who watch a media item which steps of it are done."""

import asyncio
import contextlib

from services.common import logs
from services.common.errors import Unavailable
from services.media.store import Media, MediaStore

_log = logs.logger(__name__)


class Progress:
    """The steps of one media item that are done, written down together and not too often.

    Nothing depends on them: while the database is away they are not told, and the item's end tells
    the last ones.
    """

    def __init__(self, store: MediaStore, media: Media, *, seconds: float) -> None:
        """Takes how many seconds there are at least between two writes."""
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
        # To its end rather than cancelled: a connection would be lost in the middle of a query.
        await self._writing

    def add(self, *steps: str) -> None:
        """Tells that steps are done."""
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
                _log.warning("steps are not told", media_id=self._media.media_id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._over.wait()
