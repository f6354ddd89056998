"""Topics that engineers pause: every worker looks once a second what is to be handled."""

import asyncio
from collections.abc import Callable

from services.common import logs
from services.common.consumer import Consumer
from services.common.errors import Unavailable
from services.fanout.store import FanoutStore

_SECONDS = 1.0

_log = logs.logger(__name__)


class Pauses:
    """Makes a consumer keep to what is paused."""

    def __init__(self, store: FanoutStore, consumer: Consumer) -> None:
        self._store = store
        self._consumer = consumer

    async def run(self, ready: Callable[[], None]) -> None:
        """Looks until it is cancelled. While the database is away, what was last known holds."""
        known: frozenset[str] | None = None
        while True:
            try:
                paused = await self._store.paused_topics()
            except Unavailable:
                _log.warning("nobody knows which topics are paused", exc_info=True)
            else:
                if paused != known:
                    _log.info("topics are paused", topics=sorted(paused))
                    self._consumer.hold(paused)
                    known = paused
                ready()
            await asyncio.sleep(_SECONDS)
