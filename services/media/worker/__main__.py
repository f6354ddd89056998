"""`python -m services.media.worker`: wires and runs the media worker."""

from photomesh.media.v1.events_pb2 import MediaDeleted, MediaUploaded

from services.chassis import config
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Subscription
from services.chassis.events.group import ConsumerGroup
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc.server import Worker, run, serve
from services.chassis.telemetry import logs
from services.media.config import MediaWorkerSettings
from services.media.pipeline.renderers import Limits, Renderers
from services.media.storage.client import S3
from services.media.storage.originals import Originals
from services.media.storage.variants import Variants
from services.media.store import MediaStore
from services.media.worker.events import MediaEvents
from services.media.worker.jobs import SWEEP_SECONDS, sweep_deleted
from services.media.worker.processor import Processor


async def main() -> None:
    settings = config.load(MediaWorkerSettings)
    logs.configure("media-worker", settings.log_level)
    limits = Limits(
        memory_bytes=settings.renderer_memory_mib * 2**20,
        large_memory_bytes=settings.renderer_large_memory_mib * 2**20,
        cpu_seconds=settings.renderer_cpu_seconds,
        wall_seconds=settings.renderer_wall_seconds,
    )
    relay = Relay(settings, settings)
    async with (
        Database(settings) as database,
        Renderers(settings.renderers, limits) as renderers,
    ):
        outbox = Outbox(database, relay)
        store, s3 = MediaStore(database, outbox), S3(settings)
        processor = Processor(
            store,
            Originals(s3),
            Variants(s3),
            renderers,
            progress_seconds=settings.progress_seconds,
        )
        # Twice the renderers, so that some photos are fetched or stored while others are rendered.
        events = MediaEvents(store, s3, processor, at_a_time=2 * settings.renderers)
        group = ConsumerGroup(
            "media-worker",
            settings,
            database,
            outbox,
            [
                # Not in order, so that the photos of one album are rendered in parallel.
                Subscription(MediaUploaded, events.on_media_uploaded, in_order=False),
                Subscription(MediaDeleted, events.on_media_deleted, in_order=False),
            ],
        )
        await serve(
            settings,
            [group.dead_letters],
            [
                *group.workers,
                Worker("relay", relay.run),
                periodic("eraser", lambda: sweep_deleted(store, s3), seconds=SWEEP_SECONDS),
            ],
        )


run(main)
