"""Sends changes of media items to their watchers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from services.chassis import context
from services.chassis.errors import Unavailable
from services.chassis.rpc.open_streams import OpenStreams
from services.chassis.telemetry import logs
from services.media.store import Media, MediaStore, State

_POLL_SECONDS = 0.25
_WATCH_SECONDS = 600.0
_HEARTBEAT_SECONDS = 15.0
_MAX_WATCHES = 2_000
_MAX_PER_ACCOUNT = 20
"""Enough for two devices that each watch an album of ten photos."""

_ENDS = (State.READY, State.FAILED, State.DELETED)

_log = logs.logger(__name__)


class Watchers:
    """All watchers of media in this process.

    One query per interval reads the items of all watchers, so that the number of queries does not
    grow with the number of watchers. Without watchers there are no queries.
    """

    def __init__(
        self,
        store: MediaStore,
        *,
        max_open: int = _MAX_WATCHES,
        max_per_account: int = _MAX_PER_ACCOUNT,
    ) -> None:
        """`max_open` and `max_per_account` limit the watches that are open at a time."""
        self._store = store
        self._open = OpenStreams(
            "watches of media", max_open=max_open, max_per_user=max_per_account
        )
        self._watching: dict[int, list[asyncio.Queue[Media | None]]] = {}
        self._has_watches = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Polls the database and notifies watchers, until canceled."""
        ready()
        while True:
            await self._has_watches.wait()
            context.enter_new_trace()
            media_ids = list(self._watching)
            try:
                found = await self._store.many(media_ids)
            except Unavailable as error:
                _log.warning("watchers.blocked", error=str(error))
            else:
                for media_id in media_ids:
                    for queue in self._watching.get(media_id, ()):
                        # Replaces the version that a slow watcher has not read yet.
                        if queue.full():
                            queue.get_nowait()
                        queue.put_nowait(found.get(media_id))
            await asyncio.sleep(_POLL_SECONDS)

    async def watch(
        self,
        media_id: int,
        account_id: int,
        *,
        seconds: float = _WATCH_SECONDS,
        heartbeat: float = _HEARTBEAT_SECONDS,
    ) -> AsyncGenerator[tuple[Media | None, bool], None]:
        """Yields the item now and after each change, with a flag that marks the last one.

        The watch ends when the item is READY, FAILED or DELETED, after `seconds`, or when the
        upload is aborted; in the last two cases, the last item yielded is the last known one.
        Yields None, as a heartbeat, when the item has not changed for `heartbeat` seconds.

        The watch counts towards the limit of `account_id`.

        Raises:
            TooManyStreams: the limit of the account or of this process is reached.
            Unavailable: the database is unavailable.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        with self._open.opened_by(account_id), self._queue(media_id) as queue:
            latest = await self._store.media(media_id)
            if latest is None:
                return
            is_last = latest.state in _ENDS
            yield latest, is_last
            heartbeat_at = clock() + heartbeat
            while not is_last:
                try:
                    async with asyncio.timeout_at(min(heartbeat_at, end)):
                        media = await queue.get()
                except TimeoutError:
                    is_last = clock() >= end
                    yield latest if is_last else None, is_last
                else:
                    if media == latest:
                        continue
                    is_last = media is None or media.state in _ENDS
                    latest = media or latest
                    yield latest, is_last
                heartbeat_at = clock() + heartbeat

    @contextmanager
    def _queue(self, media_id: int) -> Iterator[asyncio.Queue[Media | None]]:
        """Returns a queue that receives an item's polled versions while the block runs."""
        queue: asyncio.Queue[Media | None] = asyncio.Queue(maxsize=1)
        self._watching.setdefault(media_id, []).append(queue)
        self._has_watches.set()
        try:
            yield queue
        finally:
            queues = self._watching[media_id]
            queues.remove(queue)
            if not queues:
                del self._watching[media_id]
            if not self._watching:
                self._has_watches.clear()
