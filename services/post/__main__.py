"""`python -m services.post`: wires the post service and serves it."""

from functools import partial

from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub

from services.chassis import config
from services.chassis.cache.client import connect
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Subscription
from services.chassis.events.group import ConsumerGroup
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc import client
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain import cdn
from services.domain.post_cache import PostCache
from services.post import jobs
from services.post.config import PostSettings
from services.post.events import Events
from services.post.internal import PostInternalService
from services.post.peers import Peers
from services.post.presenter import Presenter
from services.post.resolver import Resolver
from services.post.service import PostService
from services.post.store import PostStore


async def main() -> None:
    settings = config.load(PostSettings)
    logs.configure("post", settings.log_level)
    relay = Relay(settings, settings)
    async with (
        Database(settings) as database,
        connect(settings) as cache,
        client.channel("account", settings.peer_account, settings.tls_dir) as account,
        client.channel("media", settings.peer_media, settings.tls_dir) as media,
        client.channel("graph", settings.peer_graph, settings.tls_dir) as graph,
    ):
        outbox = Outbox(database, relay)
        store = PostStore(database, outbox)
        peers = Peers(
            AccountInternalServiceStub(account),
            MediaInternalServiceStub(media),
            GraphInternalServiceStub(graph),
        )
        resolver = Resolver(store, peers)
        presenter = Presenter(peers.names, cdn.signer(settings))
        public = PostService(store, peers, resolver, presenter, PostCache(cache))
        internal = PostInternalService(store, presenter)
        events = Events(store, peers, resolver)
        group = ConsumerGroup(
            "post",
            settings,
            database,
            outbox,
            [
                Subscription(MediaProcessed, events.on_media_processed),
                Subscription(MediaDeleted, events.on_media_deleted),
            ],
        )
        await serve(
            settings,
            [
                Service("photomesh.post.v1.PostService", public),
                Service("photomesh.post.v1.PostInternalService", internal),
                group.dead_letters,
            ],
            [
                *group.workers,
                Worker("relay", relay.run),
                periodic(
                    "sweep", partial(jobs.sweep, store, resolver), seconds=settings.sweep_seconds
                ),
            ],
        )


run(main)
