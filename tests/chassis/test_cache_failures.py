"""Calls while servers of the cache stall, die or hand over slots."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest
import uvloop
from hiredis import ReplyError
from redis import Redis
from redis.exceptions import RedisError

from deploy.local.stack import Stack
from services.chassis.cache.client import connect
from services.chassis.cache.cluster import slot_of
from services.chassis.cache.scripts import Script
from services.chassis.config import CacheSettings
from services.chassis.errors import Unavailable
from services.domain.timelines import HomeTimelines
from tests.eventually import PATIENCE_SECONDS, eventually

_SET = Script("""
    --!arguments value, owner
    redis.call('SET', 'value:{' .. owner .. '}', value)
""")
_GET = Script("""
    --!arguments owner
    return redis.call('GET', 'value:{' .. owner .. '}')
""")
_TOUCH = Script("""
    --!arguments owners[]
    for _, owner in ipairs(owners) do
        redis.call('SET', 'touched:{' .. owner .. '}', 1)
    end
    return #owners
""")


def test_owners_and_their_keys_share_a_slot():
    # From the cluster specification.
    assert slot_of("123456789") == 12739
    assert slot_of("{user1000}.following") == slot_of("{user1000}.followers") == slot_of("user1000")
    assert slot_of("foo{{bar}}zap") == slot_of("{bar")
    assert slot_of("foo{}{bar}") != slot_of("bar")
    assert slot_of("feed1:{17}") == slot_of("rules1:{17}") == slot_of("17")


async def test_a_stalled_server_costs_few_callers_the_timeout(stack):
    stack.up(["valkey"])
    settings = CacheSettings(valkey_url=stack.valkey_url, valkey_timeout_seconds=0.2)
    async with connect(settings) as cache:
        await eventually(lambda: _succeeds(cache.get_many(["any"])))
        with stack.stalled("valkey"):
            first = await asyncio.gather(*(_is_refused(cache.get_many(["any"])) for _ in range(50)))
            assert all(first)
            # Long enough for a probe of the server.
            began = time.monotonic()
            while time.monotonic() < began + 1:
                assert _is_refused_at_once(cache.get_many(["any"]))
                await asyncio.sleep(0.002)

        await eventually(lambda: _succeeds(cache.get_many(["any"])))


async def test_the_client_reconnects_to_a_restarted_server(stack):
    stack.up(["valkey"])
    async with connect(_patient(stack.valkey_url)) as cache:
        await cache.put_many({"any": b"value"}, seconds=60, only_new=False)
        stack.kill("valkey")
        assert await _is_refused(cache.get_many(["any"]))
        await asyncio.to_thread(stack.start, "valkey")

        await eventually(lambda: _succeeds(cache.get_many(["any"])))


def test_the_client_works_on_uvloop(cache_url):
    async def main() -> list[bytes | None]:
        async with connect(_patient(cache_url)) as cache:
            await cache.put_many({"a": b"1" * 10**6, "b": b"2"}, seconds=60, only_new=False)
            return await cache.get_many(["b", "a", "c"])

    assert uvloop.run(main()) == [b"2", b"1" * 10**6, None]


async def test_an_error_of_a_script_is_not_an_outage(cache):
    with pytest.raises(ReplyError, match="nosuchcommand"):
        await cache.run(Script("error('nosuchcommand')"), 1)


async def test_keys_are_found_while_their_slot_moves(valkey_cluster):
    """Slots are moved key by key, so for a while each server has some of the keys."""
    slot = slot_of("42")
    source, target, *_ = _masters(valkey_cluster, slot)
    moved = [f"moved:{n}:{{42}}" for n in range(5)]
    values = {key: key.encode() for key in (*moved, "stays:{42}", "elsewhere:{43}")}
    owners = range(200)
    async with connect(_patient(valkey_cluster.valkey_url)) as cache:
        await cache.put_many(values, seconds=60, only_new=False)
        await cache.run(_SET, 42, value="kept")

        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", _id(source))
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", _id(target))
        source.migrate("127.0.0.1", _port(target), [*moved, "value:{42}"], 0, 1000)

        assert await cache.get_many(list(values)) == list(values.values())
        assert await cache.run(_GET, 42) == b"kept"
        await cache.put_many({"new:{42}": b"there"}, seconds=60, only_new=True)
        assert sum(await cache.run_on_owners(_TOUCH, owners)) == len(owners)

        source.migrate("127.0.0.1", _port(target), ["stays:{42}"], 0, 1000)
        for node in (target, source):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", _id(target))

        assert await cache.run(_GET, 42) == b"kept"
        assert await cache.get_many(["new:{42}", *values]) == [b"there", *values.values()]
        assert sum(await cache.run_on_owners(_TOUCH, owners)) == len(owners)


async def test_the_replica_of_a_killed_master_takes_over(valkey_cluster):
    ports = [port for port, _ in valkey_cluster.ports.valkey_nodes]
    master = _masters(valkey_cluster, slot_of("42"))[0]
    name = f"valkey-{ports.index(_port(master)) + 1}"
    elsewhere = next(
        n
        for n in range(100)
        if _port(_masters(valkey_cluster, slot_of(str(n)))[0]) != _port(master)
    )
    readers = range(30, 60)
    async with connect(_patient(valkey_cluster.valkey_url)) as cache:
        await cache.run(_SET, 42, value="kept")
        await cache.run(_SET, elsewhere, value="kept")
        timelines = HomeTimelines(cache)
        for reader in readers:
            await timelines.drop(reader)
            marker = await timelines.begin_rebuild(reader)
            await timelines.finish_rebuild(reader, marker, [1 << 23], whole=True, version=1)
        assert await timelines.push(readers, [2 << 23]) == len(readers)
        # A failover may lose writes that the replica lacks, so this test first waits for it.
        master.execute_command("WAIT", 1, 1000)

        valkey_cluster.kill(name)
        # Without waiting for the replica.
        assert await _is_refused(cache.run(_GET, 42))
        # Other servers are not affected.
        assert await cache.run(_GET, elsewhere) == b"kept"

        assert await eventually(lambda: cache.run(_GET, 42)) == b"kept"
        assert await timelines.push(readers, [3 << 23]) == len(readers)

        # The old master returns as a replica, without effect on callers.
        await asyncio.to_thread(valkey_cluster.start, name)
        assert await timelines.push(readers, [4 << 23]) == len(readers)
        for reader in readers:
            held = await timelines.read(reader, 0, 10)
            assert list(held.post_ids) == [n << 23 for n in (4, 3, 2, 1)]


def _masters(cluster: Stack, slot: int) -> list[Redis]:
    """Returns a client for each master; the first owns the slot."""
    ranges = next(ranges for port, _ in cluster.ports.valkey_nodes if (ranges := _slots(port)))
    ordered = sorted(ranges, key=lambda r: not r[0] <= slot <= r[1])
    ports = dict.fromkeys(master[1] for _, _, master, *_ in ordered)
    return [Redis(port=port) for port in ports]


def _slots(port: int) -> list[Any]:
    with contextlib.suppress(RedisError), Redis(port=port) as node:
        node.response_callbacks.clear()
        return node.execute_command("CLUSTER", "SLOTS")
    return []


def _port(node: Redis) -> int:
    return node.connection_pool.connection_kwargs["port"]


def _id(node: Redis) -> str:
    return node.execute_command("CLUSTER MYID")


def _patient(valkey_url: str) -> CacheSettings:
    """Returns settings with a timeout that no running server exceeds, even on a busy machine."""
    return CacheSettings(valkey_url=valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS)


async def _is_refused(call: Awaitable[object]) -> bool:
    try:
        await call
    except Unavailable:
        return True
    return False


def _is_refused_at_once(call: Coroutine[Any, Any, object]) -> bool:
    """Returns whether a call is refused before it waits for anything."""
    try:
        call.send(None)
    except Unavailable:
        return True
    call.close()
    return False


async def _succeeds(call: Awaitable[object]) -> bool:
    await call
    return True
