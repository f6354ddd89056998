"""`python -m services.graph`: wires the graph service and serves it."""

from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub

from services.chassis import config
from services.chassis.cache.client import connect
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Relay
from services.chassis.rpc import client
from services.chassis.rpc.paging import read_key
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain.timelines import HomeTimelines
from services.graph.config import GraphSettings
from services.graph.internal import GraphInternalService
from services.graph.peers import Peers
from services.graph.service import GraphService
from services.graph.store.audiences import Audiences, Thresholds
from services.graph.store.lists import Lists
from services.graph.store.relations import Relations


async def main() -> None:
    settings = config.load(GraphSettings)
    logs.configure("graph", settings.log_level)
    relay = Relay(settings, settings)
    async with (
        Database(settings) as database,
        connect(settings) as cache,
        client.channel("account", settings.peer_account, settings.tls_dir) as account,
    ):
        outbox = Outbox(database, relay)
        relations = Relations(
            database,
            outbox,
            follow_limit=settings.follow_limit,
            mute_limit=settings.mute_limit,
        )
        thresholds = Thresholds(settings.celebrity_promote_at, settings.celebrity_demote_below)
        audiences = Audiences(database, outbox, thresholds)
        public = GraphService(
            relations,
            Lists(database),
            audiences,
            HomeTimelines(cache),
            Peers(AccountInternalServiceStub(account)),
            read_key(settings.page_key_file),
        )
        internal = GraphInternalService(relations, audiences)
        await serve(
            settings,
            [
                Service("photomesh.graph.v1.GraphService", public),
                Service("photomesh.graph.v1.GraphInternalService", internal),
            ],
            [Worker("relay", relay.run)],
        )


run(main)
