"""Deletes large fan-outs that ended long ago."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

from services.common import context, logs
from services.common.errors import Unavailable
from services.fanout.store import FanoutStore

_PAUSE_SECONDS = (1800.0, 5400.0)
"""Drawn at random each time, so that workers spread out."""

_log = logs.logger(__name__)


class Purger:
    """Purges about once an hour; any number of processes may do so at once."""

    def __init__(self, store: FanoutStore) -> None:
        self._store = store

    async def run(self, ready: Callable[[], None]) -> None:
        ready()
        while True:
            context.enter(context.CallContext(trace_id=context.trace_id_of(None)))
            try:
                if purged := await self._store.purge(datetime.now(UTC)):
                    _log.info("fanouts.purged", fanouts=purged)
            except Unavailable:
                _log.warning("fanouts.purge_failed", exc_info=True)
            await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))
