"""`python -m services.post`: wires the post service and serves it."""

from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub

from services.chassis import config
from services.chassis.cache.client import connect
from services.chassis.database.pool import Database
from services.chassis.events.consumer import Consumer, Subscription
from services.chassis.events.dead_letter_service import dead_letters_of
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.jobs import periodic
from services.chassis.rpc import client
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain import cdn
from services.domain.account_names import AccountNames
from services.domain.post_cache import PostCache
from services.post.config import PostSettings
from services.post.presenter import Presenter
from services.post.publisher import Publisher
from services.post.service import PostInternalService, PostService
from services.post.store import PostStore

_GROUP = "post"


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
        publisher = Publisher(store, MediaInternalServiceStub(media))
        presenter = Presenter(
            AccountNames(AccountInternalServiceStub(account)), cdn.signer(settings)
        )
        public = PostService(
            store, publisher, presenter, PostCache(cache), GraphInternalServiceStub(graph)
        )
        internal = PostInternalService(store, presenter)
        subscriptions = [
            Subscription(MediaProcessed, publisher.on_media_processed),
            Subscription(MediaDeleted, publisher.on_media_deleted),
        ]
        consumer = Consumer(settings, group=_GROUP, subscriptions=subscriptions)
        dead_letters, dead_letter_workers = dead_letters_of(
            settings, database, outbox, group=_GROUP, subscriptions=subscriptions
        )
        await serve(
            settings,
            [
                Service("photomesh.post.v1.PostService", public),
                Service("photomesh.post.v1.PostInternalService", internal),
                dead_letters,
            ],
            [
                Worker("consumer", consumer.run),
                Worker("relay", relay.run),
                periodic("sweep", publisher.sweep, seconds=settings.sweep_seconds),
                *dead_letter_workers,
            ],
        )


run(main)
