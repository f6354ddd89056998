"""`python -m services.media.worker`: wires the media worker and runs it."""

from photomesh.media.v1.events_pb2 import MediaDeleted, MediaUploaded

from services.common import config, logs
from services.common.consumer import Consumer, Subscription
from services.common.database import Database
from services.common.outbox import Outbox, Relay
from services.common.server import Worker, run, serve
from services.media.config import MediaWorkerSettings
from services.media.pipeline.renderers import Limits, Renderers
from services.media.storage import Storage
from services.media.store import MediaStore
from services.media.worker import GROUP
from services.media.worker.eraser import Eraser
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
        store, storage = MediaStore(database, Outbox(database, relay)), Storage(settings)
        eraser = Eraser(store, storage)
        processor = Processor(
            store,
            storage,
            renderers,
            # While one is rendered the next is fetched, or the last one stored.
            at_a_time=2 * settings.renderers,
            progress_seconds=settings.progress_seconds,
        )
        consumer = Consumer(
            settings,
            group=GROUP,
            subscriptions=[
                Subscription(
                    MediaUploaded,
                    processor.process,
                    # The photos of one album are rendered side by side.
                    in_order=False,
                ),
                Subscription(MediaDeleted, eraser.on_media_deleted, in_order=False),
            ],
        )
        await serve(
            settings,
            [],
            [
                Worker("consumer", consumer.run),
                Worker("relay", relay.run),
                Worker("eraser", eraser.sweep_until_cancelled),
            ],
        )


run(main)
