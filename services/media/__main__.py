"""`python -m services.media`: wires and runs the media service."""

from services.chassis import config
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain import cdn
from services.media.config import MediaSettings
from services.media.internal import MediaInternalService
from services.media.jobs import SWEEP_SECONDS, sweep_uploads
from services.media.service import MediaService
from services.media.storage.client import S3
from services.media.storage.originals import Originals
from services.media.storage.parts import Parts
from services.media.store import MediaStore
from services.media.uploads.lifecycle import Uploads
from services.media.uploads.multipart import MultipartUploads
from services.media.uploads.streams import StreamedUploads
from services.media.watchers import Watchers


async def main() -> None:
    settings = config.load(MediaSettings)
    logs.configure("media", settings.log_level)
    relay = Relay(settings, settings)
    async with Database(settings) as database:
        outbox = Outbox(database, relay)
        store = MediaStore(database, outbox)
        s3 = S3(settings)
        originals, parts = Originals(s3), Parts(s3)
        multipart = MultipartUploads(store, parts)
        uploads = Uploads(store, originals, multipart)
        streams = StreamedUploads(uploads, multipart, originals, parts)
        watchers = Watchers(store)
        public = MediaService(
            store, originals, uploads, multipart, streams, watchers, cdn.signer(settings)
        )
        internal = MediaInternalService(store)
        await serve(
            settings,
            [
                Service("photomesh.media.v1.MediaService", public),
                Service("photomesh.media.v1.MediaInternalService", internal),
            ],
            [
                Worker("relay", relay.run),
                periodic("sweeper", lambda: sweep_uploads(store, uploads), seconds=SWEEP_SECONDS),
                Worker("watchers", watchers.run),
            ],
        )


run(main)
