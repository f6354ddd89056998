"""`python -m services.media.reprocess`: updates READY media to the current recipe.

Run it after you add a step or raise its version. It scans all media once and publishes
MediaUploaded for those that another recipe made. The worker makes the missing variants and facts,
and publishes MediaProcessed for services that keep a snapshot. Until then, the old variants are
served.

You can stop and restart it at any time, because it skips media that are up to date. To resume the
scan of an earlier run, pass the `after` field of its last `media.announced` log line as `--after`.
"""

import argparse
import asyncio
import time

import uvloop

from services.chassis import config
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.telemetry import logs
from services.media.config import ReprocessSettings
from services.media.store import MediaStore

_log = logs.logger(__name__)

_PAGE = 100


async def reprocess(store: MediaStore, *, per_second: float, after: tuple[int, int]) -> int:
    """Publishes MediaUploaded for all outdated media, and returns how many there were.

    Args:
        store: the media.
        per_second: the maximum number of media per second.
        after: the shard and media id after which the scan starts; (-1, 0) for all.

    Raises:
        Unavailable: the database is unavailable; the log contains the last position.
    """
    published = 0
    begun = time.monotonic()
    page = max(1, min(_PAGE, int(per_second)))
    while True:
        count, after = await store.announce_outdated(after, limit=page)
        if not count:
            return published
        published += count
        _log.info("media.announced", media=published, after=f"{after[0]}/{after[1]}")
        # The worker also processes new uploads, so this limits the rate.
        await asyncio.sleep(max(0.0, begun + published / per_second - time.monotonic()))


async def main(per_second: float, after: tuple[int, int]) -> None:
    settings = config.load(ReprocessSettings)
    logs.configure("media-reprocess", settings.log_level)
    relay = Relay(settings, settings)
    async with Database(settings) as database:
        relaying = asyncio.create_task(relay.run(lambda: None))
        try:
            store = MediaStore(database, Outbox(database, relay))
            published = await reprocess(store, per_second=per_second, after=after)
            _log.info("reprocess.finished", media=published)
        finally:
            # The media service's relay publishes the remaining events of the outbox.
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)


def _position(text: str) -> tuple[int, int]:
    shard, _, media_id = text.partition("/")
    return int(shard), int(media_id)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.media.reprocess")
    parser.add_argument(
        "--per-second",
        type=float,
        default=5.0,
        help="maximum number of media per second (default: %(default)s)",
    )
    parser.add_argument(
        "--after",
        type=_position,
        default=(-1, 0),
        metavar="SHARD/MEDIA_ID",
        help="the position after which to start, to resume an earlier run",
    )
    arguments = parser.parse_args()
    uvloop.run(main(arguments.per_second, arguments.after))
