"""Tells those who watch media what happens to them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from services.common import context, logs
from services.common.errors import Unavailable
from services.common.open_streams import OpenStreams
from services.media.store import Media, MediaStore, State

_POLL_SECONDS = 0.25
_MOST_WATCHERS = 2_000
_OF_ONE_ACCOUNT = 20
"""Two devices that watch each photo of an album of ten."""

_ENDS = (State.READY, State.FAILED, State.DELETED)

_log = logs.logger(__name__)


class Watchers:
    """All who watch media in this process: one query asks for all of them at a time.

    So a watcher costs the database nothing of its own, and nothing is asked while nobody watches.
    """

    def __init__(
        self,
        store: MediaStore,
        *,
        most: int = _MOST_WATCHERS,
        of_one_account: int = _OF_ONE_ACCOUNT,
    ) -> None:
        """Takes how many watches may be open at a time."""
        self._store = store
        self._open = OpenStreams("watches of media", most=most, of_one_account=of_one_account)
        self._watching: dict[int, list[asyncio.Queue[Media | None]]] = {}
        self._somebody = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Asks, and tells watchers, until it is cancelled."""
        ready()
        while True:
            await self._somebody.wait()
            context.enter(context.CallContext(trace_id=context.trace_id_of(None)))
            asked = list(self._watching)
            try:
                found = await self._store.many(asked)
            except Unavailable as error:
                _log.warning("watchers wait", error=str(error))
            else:
                for media_id in asked:
                    for queue in self._watching.get(media_id, ()):
                        # What a slow watcher has not seen yet is of no interest any more.
                        if queue.full():
                            queue.get_nowait()
                        queue.put_nowait(found.get(media_id))
            await asyncio.sleep(_POLL_SECONDS)

    async def watch(
        self, media_id: int, account_id: int, *, seconds: float, heartbeat: float
    ) -> AsyncGenerator[tuple[Media | None, bool], None]:
        """Yields an item whenever it has changed, and whether that is the last of it.

        The watch counts as the account's.

        The last one is READY, FAILED or DELETED, or whatever it is after `seconds`, or was when
        its upload was given up. None comes when nothing else did for `heartbeat` seconds.

        Raises:
            TooManyStreams: the account, or this process, has no room for one more.
            Unavailable: the database is away.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        with self._open.opened_by(account_id), self._queue(media_id) as queue:
            told = await self._store.media(media_id)
            if told is None:
                return
            yield told, told.state in _ENDS
            beat = clock() + heartbeat
            while told.state not in _ENDS:
                try:
                    async with asyncio.timeout_at(min(beat, end)):
                        media = await queue.get()
                except TimeoutError:
                    if clock() >= end:
                        yield told, True
                        return
                    yield None, False
                    beat = clock() + heartbeat
                    continue
                if media is None:
                    yield told, True
                    return
                if media != told:
                    told = media
                    yield told, told.state in _ENDS
                    beat = clock() + heartbeat

    @contextmanager
    def _queue(self, media_id: int) -> Iterator[asyncio.Queue[Media | None]]:
        """Gives a queue for what is asked about an item, until its watcher leaves."""
        queue: asyncio.Queue[Media | None] = asyncio.Queue(maxsize=1)
        self._watching.setdefault(media_id, []).append(queue)
        self._somebody.set()
        try:
            yield queue
        finally:
            queues = self._watching[media_id]
            queues.remove(queue)
            if not queues:
                del self._watching[media_id]
            if not self._watching:
                self._somebody.clear()
