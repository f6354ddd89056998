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
from services.chassis.events.consumer import Consumer, Subscription
from services.chassis.events.dead_letter_service import dead_letters_of
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc.client import channel
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain.post_cache import PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.fanout import chunks, jobs
from services.fanout.admin import FanoutAdminService
from services.fanout.config import FanoutSettings
from services.fanout.pauses import Pauses
from services.fanout.peers import Peers
from services.fanout.store import FanoutStore
from services.fanout.walk import Walks
from services.fanout.worker import Fanout

_GROUP = "fanout"


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
        fanout = Fanout(homes, AuthorTimelines(cache), PostCache(cache), peers, walks, store)
        subscriptions = [
            Subscription(PostCreated, fanout.on_post_created),
            Subscription(PostChanged, fanout.on_post_changed),
            Subscription(FollowChanged, fanout.on_follow_changed),
            Subscription(CelebrityChanged, fanout.on_celebrity_changed),
            Subscription(
                ChunkReady,
                chunks.Chunks(homes, peers, walks, store).on_chunk_ready,
                at_a_time=chunks.AT_A_TIME,
            ),
        ]
        consumer = Consumer(settings, group=_GROUP, subscriptions=subscriptions)
        # Until the pauses are read from the database.
        consumer.hold([each.topic.name for each in subscriptions])
        dead_letters, dead_letter_workers = dead_letters_of(
            settings, database, outbox, group=_GROUP, subscriptions=subscriptions
        )
        admin = FanoutAdminService(settings, _GROUP, [each.topic for each in subscriptions], store)
        await serve(
            settings,
            [
                Service("photomesh.fanout.v1.FanoutAdminService", admin),
                dead_letters,
            ],
            [
                Worker("consumer", consumer.run),
                Worker("relay", relay.run),
                Worker("pauses", Pauses(store, consumer).run),
                periodic("purge", partial(jobs.purge, store), seconds=jobs.PURGE_SECONDS),
                *dead_letter_workers,
            ],
        )


run(main)
