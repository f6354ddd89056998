"""`python -m services.fanout`: wires the fan-out worker and runs it."""

from functools import partial

from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.chassis import config
from services.chassis.cache.client import connect
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Subscription
from services.chassis.events.group import ConsumerGroup
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc.client import channel
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain.post_cache import PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.fanout import jobs
from services.fanout.admin import FanoutAdminService
from services.fanout.config import FanoutSettings
from services.fanout.events import CHUNKS_AT_A_TIME, Chunks, Events
from services.fanout.peers import Peers
from services.fanout.store import FanoutStore
from services.fanout.walk import Walks


async def main() -> None:
    settings = config.load(FanoutSettings)
    logs.configure("fanout", settings.log_level)
    relay = Relay(settings, settings)
    async with (
        Database(settings) as database,
        connect(settings) as cache,
        channel("graph", settings.peer_graph, settings.tls_dir) as graph,
        channel("post", settings.peer_post, settings.tls_dir) as post,
    ):
        outbox = Outbox(database, relay)
        store = FanoutStore(database, outbox)
        peers = Peers(
            GraphInternalServiceStub(graph),
            PostInternalServiceStub(post),
            chunk_size=settings.fanout_chunk_size,
            backfill=settings.fanout_backfill,
        )
        homes, walks = HomeTimelines(cache), Walks(peers)
        events = Events(homes, AuthorTimelines(cache), PostCache(cache), peers, walks, store)
        chunks = Chunks(homes, peers, walks, store)
        group = ConsumerGroup(
            "fanout",
            settings,
            database,
            outbox,
            [
                Subscription(PostCreated, events.on_post_created),
                Subscription(PostChanged, events.on_post_changed),
                Subscription(FollowChanged, events.on_follow_changed),
                Subscription(CelebrityChanged, events.on_celebrity_changed),
                Subscription(ChunkReady, chunks.on_chunk_ready, at_a_time=CHUNKS_AT_A_TIME),
            ],
        )
        # Pause all topics until the worker has read from the database which ones are paused.
        group.consumer.hold([topic.name for topic in group.topics])
        admin = FanoutAdminService(group, store)
        await serve(
            settings,
            [
                Service("photomesh.fanout.v1.FanoutAdminService", admin),
                group.dead_letters,
            ],
            [
                *group.workers,
                Worker("relay", relay.run),
                Worker("pauses", partial(jobs.apply_pauses, store, group.consumer)),
                periodic("purge", partial(jobs.purge, store), seconds=jobs.PURGE_SECONDS),
            ],
        )


run(main)
