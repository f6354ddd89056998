"""What fan-out does periodically."""

from datetime import UTC, datetime

from services.chassis.telemetry import logs
from services.fanout.store import FanoutStore

PURGE_SECONDS = 3600.0
"""The mean pause between purges."""

_log = logs.logger(__name__)


async def purge(store: FanoutStore) -> None:
    """Deletes large fan-outs that ended long ago; any number of processes may do so at once."""
    if purged := await store.purge(datetime.now(UTC)):
        _log.info("fanouts.purged", fanouts=purged)
