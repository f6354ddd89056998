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
from services.media.storage import Storage
from services.media.store import MediaStore
from services.media.worker.eraser import SWEEP_SECONDS, Eraser
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
        store, storage = MediaStore(database, outbox), Storage(settings)
        eraser = Eraser(store, storage)
        processor = Processor(
            store,
            storage,
            renderers,
            # Twice the renderers: others are fetched or stored while some are rendered.
            at_a_time=2 * settings.renderers,
            progress_seconds=settings.progress_seconds,
        )
        group = ConsumerGroup(
            "media-worker",
            settings,
            database,
            outbox,
            [
                # Not in order, so that the photos of one album are rendered in parallel.
                Subscription(MediaUploaded, processor.process, in_order=False),
                Subscription(MediaDeleted, eraser.on_media_deleted, in_order=False),
            ],
        )
        await serve(
            settings,
            [group.dead_letters],
            [
                *group.workers,
                Worker("relay", relay.run),
                periodic("eraser", eraser.sweep, seconds=SWEEP_SECONDS),
            ],
        )


run(main)
