"""Periodic jobs of the fan-out worker."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from services.chassis.errors import Unavailable
from services.chassis.events.consumer import Consumer
from services.chassis.telemetry import logs
from services.fanout.store import FanoutStore

PURGE_SECONDS = 3600.0
"""The mean pause between purges."""

_PAUSES_SECONDS = 1.0

_log = logs.logger(__name__)


async def purge(store: FanoutStore) -> None:
    """Deletes old fan-outs. May run concurrently in several processes."""
    if purged := await store.purge(datetime.now(UTC)):
        _log.info("fanouts.purged", fanouts=purged)


async def apply_pauses(store: FanoutStore, consumer: Consumer, ready: Callable[[], None]) -> None:
    """Polls the database once a second for paused topics, and pauses them, until canceled.

    While the database is unavailable, the last known pauses apply. Calls `ready` after each read.
    """
    known: frozenset[str] | None = None
    while True:
        try:
            paused = await store.paused_topics()
        except Unavailable:
            _log.warning("pauses.read_failed", exc_info=True)
        else:
            if paused != known:
                _log.info("pauses.changed", topics=sorted(paused))
                consumer.hold(paused)
                known = paused
            ready()
        await asyncio.sleep(_PAUSES_SECONDS)
