"""`python -m services.media.reprocess`: brings READY media to today's recipe.

After a step was added or its version raised, this goes through all media once and tells the worker
of those that another recipe made; the worker makes what is missing, and MEDIA_PROCESSED tells who
keeps a snapshot. Meanwhile the old variants are served.

It may be stopped and started at any time: what is remade is found to be so. `--after` begins where
the last line of an earlier run ended, which saves going through what is done.
"""

import argparse
import asyncio
import time

import uvloop

from services.common import config, logs
from services.common.database import Database
from services.common.outbox import Outbox, Relay
from services.media.config import ReprocessSettings
from services.media.store import MediaStore

_log = logs.logger(__name__)

_PAGE = 100


async def reprocess(store: MediaStore, *, per_second: float, after: tuple[int, int]) -> int:
    """Tells the worker of all outdated media, at most so many each second; returns how many.

    Raises:
        Unavailable: the database is away; the log says how far it went.
    """
    told = 0
    begun = time.monotonic()
    page = max(1, min(_PAGE, int(per_second)))
    while True:
        count, after = await store.announce_outdated(after, limit=page)
        if not count:
            return told
        told += count
        _log.info("told", media=told, after=f"{after[0]}/{after[1]}")
        # New uploads share the worker, so it is not given all at once.
        await asyncio.sleep(max(0.0, begun + told / per_second - time.monotonic()))


async def main(per_second: float, after: tuple[int, int]) -> None:
    settings = config.load(ReprocessSettings)
    logs.configure("media-reprocess", settings.log_level)
    relay = Relay(settings, settings)
    async with Database(settings) as database:
        relaying = asyncio.create_task(relay.run(lambda: None))
        try:
            store = MediaStore(database, Outbox(database, relay))
            told = await reprocess(store, per_second=per_second, after=after)
            _log.info("all media were looked at", told=told)
        finally:
            # What was stored and not relayed yet, the media service's relay takes on.
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)


def _position(text: str) -> tuple[int, int]:
    shard, _, media_id = text.partition("/")
    return int(shard), int(media_id)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.media.reprocess")
    parser.add_argument("--per-second", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument(
        "--after",
        type=_position,
        default=(-1, 0),
        metavar="SHARD/MEDIA_ID",
        help="where an earlier run ended",
    )
    arguments = parser.parse_args()
    uvloop.run(main(arguments.per_second, arguments.after))
