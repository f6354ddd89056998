"""Changes succeed while the cache is unavailable or stalls."""

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1 import graph_service_pb2 as pb

from services.chassis import context
from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.domain.timelines import HomeTimelines
from services.graph.peers import Peers
from services.graph.service import GraphService
from tests.eventually import PATIENCE_SECONDS
from tests.graph.conftest import Graph


@pytest.fixture(params=["unavailable", "stalled"])
async def service(request, graph: Graph) -> AsyncIterator[GraphService]:
    """A service whose cache accepts connections but never answers, or is closed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if request.param == "unavailable":
            silent.close()
        async with (
            connect(
                # A call that waited for the cache's own timeout would take an hour.
                CacheSettings(valkey_url=f"redis://127.0.0.1:{port}/0", valkey_timeout_seconds=3600)
            ) as cache,
            grpc.aio.insecure_channel("127.0.0.1:1") as no_account,
        ):
            yield GraphService(
                graph.stores[0],
                graph.lists,
                graph.audiences[0],
                HomeTimelines(cache),
                Peers(AccountInternalServiceStub(no_account)),
                page_key=b"secret",
            )


async def test_an_unfollow_does_not_wait_for_an_unavailable_cache(service, graph, account):
    fan, star = account(), account()
    await graph.stores[0].follow(fan, star)

    async def unfollow() -> None:
        context.enter(context.CallContext(trace_id="0" * 32, user_id=fan))
        await service.Unfollow(pb.UnfollowRequest(account_id=star), None)

    # In a separate task, because it sets the caller of the task.
    await asyncio.wait_for(asyncio.create_task(unfollow()), PATIENCE_SECONDS)

    assert await graph.edges() == set()
    assert await graph.events() == {(fan, star): 2}
