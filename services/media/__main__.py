"""`python -m services.media`: wires and runs the media service."""

from datetime import UTC, datetime

from services.chassis import config
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain import cdn
from services.media.config import MediaSettings
from services.media.service import MediaInternalService, MediaService
from services.media.storage import Storage
from services.media.store import MediaStore
from services.media.sweeper import SWEEP_SECONDS, Sweeper
from services.media.uploads import Uploads
from services.media.watchers import Watchers


async def main() -> None:
    settings = config.load(MediaSettings)
    logs.configure("media", settings.log_level)
    relay = Relay(settings, settings)
    async with Database(settings) as database:
        outbox = Outbox(database, relay)
        store = MediaStore(database, outbox)
        storage = Storage(settings)
        uploads = Uploads(store, storage)
        watchers = Watchers(store)
        sweeper = Sweeper(store, uploads)

        async def sweep_uploads() -> None:
            await sweeper.sweep(datetime.now(UTC))

        public = MediaService(store, storage, cdn.signer(settings), uploads, watchers)
        internal = MediaInternalService(store)
        await serve(
            settings,
            [
                Service("photomesh.media.v1.MediaService", public),
                Service("photomesh.media.v1.MediaInternalService", internal),
            ],
            [
                Worker("relay", relay.run),
                periodic("sweeper", sweep_uploads, seconds=SWEEP_SECONDS),
                Worker("watchers", watchers.run),
            ],
        )


run(main)
