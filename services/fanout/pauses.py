"""Pauses of topics: every worker reads once a second which topics operators have paused."""

import asyncio
from collections.abc import Callable

from services.chassis.errors import Unavailable
from services.chassis.events.consumer import Consumer
from services.chassis.telemetry import logs
from services.fanout.store import FanoutStore

_SECONDS = 1.0

_log = logs.logger(__name__)


class Pauses:
    """Applies the pauses to a consumer."""

    def __init__(self, store: FanoutStore, consumer: Consumer) -> None:
        self._store = store
        self._consumer = consumer

    async def run(self, ready: Callable[[], None]) -> None:
        """Polls until canceled. While the database is unavailable, the last known pauses apply."""
        known: frozenset[str] | None = None
        while True:
            try:
                paused = await self._store.paused_topics()
            except Unavailable:
                _log.warning("pauses.read_failed", exc_info=True)
            else:
                if paused != known:
                    _log.info("pauses.changed", topics=sorted(paused))
                    self._consumer.hold(paused)
                    known = paused
                ready()
            await asyncio.sleep(_SECONDS)
