"""`python -m services.graph`: wires the graph service and serves it."""

from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1.graph_internal_service_pb2_grpc import (
    add_GraphInternalServiceServicer_to_server,
)
from photomesh.graph.v1.graph_service_pb2_grpc import add_GraphServiceServicer_to_server

from services.common import client, config, logs
from services.common.database import Database
from services.common.outbox import Outbox, Relay
from services.common.server import PUBLIC, Service, Worker, run, serve
from services.graph.config import GraphSettings
from services.graph.service import GraphInternalService, GraphService
from services.graph.store import GraphStore


async def main() -> None:
    settings = config.load(GraphSettings)
    logs.configure("graph", settings.log_level)
    relay = Relay(settings, settings)
    async with (
        Database(settings) as database,
        client.channel("account", settings.peer_account, settings.tls_dir) as account,
    ):
        store = GraphStore(database, Outbox(database, relay), follow_limit=settings.follow_limit)
        public = GraphService(store, AccountInternalServiceStub(account))
        internal = GraphInternalService(store)
        await serve(
            settings,
            [
                Service(
                    "photomesh.graph.v1.GraphService",
                    lambda server: add_GraphServiceServicer_to_server(public, server),
                    callers=PUBLIC,
                ),
                Service(
                    "photomesh.graph.v1.GraphInternalService",
                    lambda server: add_GraphInternalServiceServicer_to_server(internal, server),
                    callers=frozenset({"fanout", "feed", "post"}),
                ),
            ],
            [Worker("relay", relay.run)],
        )


run(main)
