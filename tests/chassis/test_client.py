"""Callers use all replicas of a peer, and do not notice when one fails."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from photomesh.graph.v1.graph_internal_service_pb2 import (
    GetAudienceRequest,
    StreamFollowersRequest,
)
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from pydantic import TypeAdapter, ValidationError

from deploy.local.ports import free_ports
from services.chassis.config import Addresses
from services.chassis.errors import Unavailable
from services.chassis.rpc import client
from tests.chassis.replica import BROKEN, SLOW, UNKNOWN
from tests.eventually import PATIENCE_SECONDS, eventually

_ROOT = Path(__file__).parents[2]

_REQUEST = GetAudienceRequest(followee_id=1, chunk_size=100)

# The longest timeout for which `call` sends a backup attempt.
_WITHIN = 4.0


class Replica:
    """One process, which can be started again."""

    def __init__(self, port: int, pki: Path) -> None:
        self.port = port
        self._pki = pki
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chassis.replica"],
            cwd=_ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'gen'}",
                "PHOTOMESH_LISTEN": f"127.0.0.1:{self.port}",
                "PHOTOMESH_TLS_DIR": str(self._pki / "graph"),
            },
        )

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        return await asyncio.to_thread(self._process.wait, PATIENCE_SECONDS)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def replicas(stack) -> Iterator[list[Replica]]:
    """Three replicas of graph."""
    # Kept, because it claims the ports.
    ports = free_ports()
    started = [Replica(port, stack.layout.pki) for port in list(ports.grpc.values())[:3]]
    try:
        yield started
    finally:
        for replica in started:
            replica.end()


@pytest.fixture
async def graph(stack, replicas) -> AsyncIterator[GraphInternalServiceStub]:
    """A stub for all replicas, which are ready."""
    addresses = ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    async with client.channel("graph", addresses, stack.layout.pki / "fanout") as channel:
        stub = GraphInternalServiceStub(channel)
        await stub.GetAudience(_REQUEST, wait_for_ready=True, timeout=PATIENCE_SECONDS)
        served: set[int] = set()

        async def all_serve() -> bool:
            served.add((await client.call(stub.GetAudience, _REQUEST)).followers)
            return len(served) == len(replicas)

        await eventually(all_serve)
        yield stub


class Traffic:
    """The results of calls that are sent continuously."""

    def __init__(self) -> None:
        self.served: Counter[int] = Counter()
        self.errors: list[Exception] = []

    async def reach(self, replicas: list[Replica], calls: int = 20) -> None:
        """Waits until each of these replicas has served that many more calls."""
        before = self.served.copy()

        async def reached() -> bool:
            return all(self.served[each.port] >= before[each.port] + calls for each in replicas)

        await eventually(reached)


@asynccontextmanager
async def traffic_to(
    graph: GraphInternalServiceStub, *, callers: int = 8
) -> AsyncIterator[Traffic]:
    traffic = Traffic()

    async def send() -> None:
        while True:
            try:
                response = await client.call(graph.GetAudience, _REQUEST, within=_WITHIN)
                traffic.served[response.followers] += 1
            except Exception as error:
                traffic.errors.append(error)

    senders = [asyncio.create_task(send()) for _ in range(callers)]
    try:
        yield traffic
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.wait(senders)


async def test_calls_spread_over_all_replicas(graph, replicas):
    async with traffic_to(graph) as traffic:
        await traffic.reach(replicas)

    assert traffic.errors == []
    assert set(traffic.served) == {replica.port for replica in replicas}


async def test_no_call_fails_when_a_replica_dies_and_comes_back(graph, replicas):
    dead, *others = replicas
    async with traffic_to(graph) as traffic:
        await traffic.reach(replicas)
        dead.send(signal.SIGKILL)
        await dead.ended()
        await traffic.reach(others)
        dead.start()
        await traffic.reach(replicas)

    assert traffic.errors == []


async def test_no_call_fails_when_a_replica_drains(graph, replicas):
    draining, *others = replicas
    async with traffic_to(graph) as traffic:
        await traffic.reach(replicas)
        draining.send(signal.SIGTERM)
        assert await draining.ended() == 0
        await traffic.reach(others)

    assert traffic.errors == []


async def test_a_stalled_replica_delays_calls_and_then_gets_none_until_it_continues(
    graph, replicas
):
    stalled, *others = replicas
    # One caller, whose backup attempt goes to the next replica for certain.
    async with traffic_to(graph, callers=1) as traffic:
        await traffic.reach(replicas)
        stalled.send(signal.SIGSTOP)
        await traffic.reach(others)

        async def none_goes_there() -> bool:
            # Without backup attempts: a call that goes there gets DEADLINE_EXCEEDED.
            for _ in range(30):
                await graph.GetAudience(_REQUEST, timeout=_WITHIN)
            return True

        await eventually(none_goes_there, within=20.0)
        stalled.send(signal.SIGCONT)
        await traffic.reach(replicas)

    assert traffic.errors == []


async def test_another_replica_answers_a_call_that_hangs(graph, replicas):
    hanging, *others = replicas
    request = GetAudienceRequest(followee_id=hanging.port, chunk_size=100)

    # One after the other, so that some of them, and no backup attempt, go to it.
    served = [
        (await client.call(graph.GetAudience, request, within=_WITHIN)).followers for _ in range(6)
    ]

    assert set(served) == {other.port for other in others}


async def test_a_backup_attempt_does_not_end_a_slow_call(graph):
    slow = GetAudienceRequest(followee_id=SLOW, chunk_size=100)

    assert (await client.call(graph.GetAudience, slow, within=_WITHIN)).followers


async def test_a_name_is_resolved(stack, replicas, graph):
    address = f"localhost:{replicas[0].port}"
    async with client.channel("graph", address, stack.layout.pki / "fanout") as channel:
        response = await client.call(
            GraphInternalServiceStub(channel).GetAudience, _REQUEST, within=PATIENCE_SECONDS
        )

    assert response.followers == replicas[0].port


async def test_an_error_of_a_peer_has_its_code_reason_message_and_fields(graph):
    with pytest.raises(client.PeerRefused) as unknown:
        await client.call(
            graph.GetAudience, GetAudienceRequest(followee_id=UNKNOWN, chunk_size=100)
        )
    with pytest.raises(client.PeerRefused) as invalid:
        await client.call(graph.GetAudience, GetAudienceRequest(followee_id=1, chunk_size=1))
    with pytest.raises(client.PeerRefused) as broken:
        await client.call(graph.GetAudience, GetAudienceRequest(followee_id=BROKEN, chunk_size=100))

    assert (unknown.value.code, unknown.value.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "DEAD_LETTER_UNKNOWN",
    )
    assert unknown.value.message == f"Dead letter {UNKNOWN} does not exist."
    assert "GetAudience: NOT_FOUND (DEAD_LETTER_UNKNOWN)" in str(unknown.value)
    assert invalid.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(invalid.value.fields) == {"chunk_size"}
    assert (broken.value.code, broken.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(broken.value)


async def test_a_stream_raises_the_error_after_its_responses(graph, replicas):
    batches = client.stream(
        graph.StreamFollowers, StreamFollowersRequest(followee_id=UNKNOWN), within=60
    )

    [received] = (await anext(batches)).follower_ids
    with pytest.raises(client.PeerRefused) as refused:
        await anext(batches)

    assert received in {replica.port for replica in replicas}
    assert refused.value.reason == "DEAD_LETTER_UNKNOWN"


async def test_a_peer_without_replicas_is_unavailable(stack):
    ports = free_ports()
    address = ports.address("graph")
    async with client.channel("graph", address, stack.layout.pki / "fanout") as channel:
        stub = GraphInternalServiceStub(channel)
        with pytest.raises(Unavailable, match="Graph"):
            await client.call(stub.GetAudience, _REQUEST)
        with pytest.raises(Unavailable, match="Graph"):
            async for _ in client.stream(
                stub.StreamFollowers, StreamFollowersRequest(followee_id=1), within=60
            ):
                pass


@pytest.mark.parametrize("value", ["thing.mesh:443", "10.0.0.1:443", "10.0.0.1:443,10.0.0.2:444"])
def test_a_setting_names_one_host_or_the_addresses_of_all_replicas(value):
    assert TypeAdapter(Addresses).validate_python(value) == value


@pytest.mark.parametrize("value", ["", "thing.mesh", "10.0.0.1:443,", "a.mesh:443,b.mesh:443"])
def test_a_malformed_setting_is_rejected(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Addresses).validate_python(value)
