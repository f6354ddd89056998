"""The cache client against a real Valkey."""

import asyncio
import itertools
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis.cache.client import connect
from services.chassis.cache.scripts import Script
from services.chassis.cache.valkey import Address, Login, parse_url
from services.chassis.config import CacheSettings
from services.chassis.errors import Unavailable
from tests.eventually import PATIENCE_SECONDS

pytestmark = pytest.mark.prove

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "40"))

_ids = itertools.count(5_000_000)

_COUNT_TEXT = """
    --!arguments owners[]
    local counts = {}
    for _, id in ipairs(owners) do
        table.insert(counts, redis.call('INCR', 'count:{' .. id .. '}'))
    end
    return counts
"""
_COUNT = Script(_COUNT_TEXT)


async def test_a_script_runs_on_a_server_that_has_not_loaded_it(cache):
    owner = next(_ids)
    unknown = Script(f"{_COUNT_TEXT}-- {owner}")

    assert await cache.run(unknown, owner) == [1]
    assert await cache.run(unknown, owner) == [2]


async def test_a_script_reaches_every_owner_once(cache):
    owners = [next(_ids) for _ in range(100)]

    results = await cache.run_on_owners(_COUNT, owners)

    assert [count for result in results for count in result] == [1] * len(owners)
    assert await cache.run(_COUNT, owners[50]) == [2]
    assert await cache.run_on_owners(_COUNT, []) == []


async def test_values_come_back_in_the_order_of_their_keys(cache):
    keys = [f"test:{next(_ids)}" for _ in range(50)]
    values = {key: key.encode() * 100 for key in keys[::2]}
    await cache.put_many(values, seconds=60, only_new=False)

    assert await cache.get_many(keys) == [values.get(key) for key in keys]

    await cache.delete(keys[0])
    assert await cache.get_many(keys[:1]) == [None]
    assert await cache.get_many([]) == []
    await cache.put_many({}, seconds=60, only_new=False)


async def test_only_new_keeps_values_that_exist(cache):
    there, new = (f"test:{next(_ids)}" for _ in range(2))
    await cache.put_many({there: b""}, seconds=60, only_new=False)

    await cache.put_many({there: b"other", new: b"value"}, seconds=60, only_new=True)
    assert await cache.get_many([there, new]) == [b"", b"value"]

    await cache.put_many({there: b"other"}, seconds=60, only_new=False)
    assert await cache.get_many([there]) == [b"other"]


async def test_an_unreachable_cache_is_unavailable():
    async with connect(CacheSettings(valkey_url="redis://127.0.0.1:1/0")) as nowhere:
        for attempt in (
            nowhere.run(_COUNT, 1),
            nowhere.run_on_owners(_COUNT, [1]),
            nowhere.get_many(["a"]),
            nowhere.put_many({"a": b""}, seconds=1, only_new=True),
            nowhere.delete("a"),
        ):
            with pytest.raises(Unavailable):
                await attempt


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(0, 400_000), min_size=1, max_size=30),
    given_up=st.sets(st.integers(0, 29)),
)
async def test_every_caller_gets_its_own_reply_even_if_others_are_cancelled(cache, sizes, given_up):
    """All share one connection, and replies arrive in pieces."""
    keys = [f"test:{next(_ids)}" for _ in sizes]
    values = {key: key.encode() + bytes(size) for key, size in zip(keys, sizes, strict=True)}
    await asyncio.gather(
        *(cache.put_many({key: value}, seconds=60, only_new=True) for key, value in values.items())
    )

    calls = [asyncio.ensure_future(cache.get_many([key])) for key in keys]
    await asyncio.sleep(0)
    for index in given_up & set(range(len(calls))):
        calls[index].cancel()

    for index, found in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        if index not in given_up:
            assert found == [values[keys[index]]]
    assert await cache.get_many(keys) == list(values.values())


@pytest.mark.parametrize(
    ("url", "addresses", "commands"),
    [
        ("redis://h:1", [Address("h", 1)], ()),
        ("redis://h:1,[::1]:2/0", [Address("h", 1), Address("::1", 2)], ()),
        (
            "redis://:p%40ss@h:1/2",
            [Address("h", 1)],
            (("AUTH", "default", "p@ss"), ("SELECT", "2")),
        ),
        (
            "redis://ada:secret@h:1,i:1",
            [Address("h", 1), Address("i", 1)],
            (("AUTH", "ada", "secret"),),
        ),
    ],
)
def test_a_url_names_servers_a_login_and_a_database(url, addresses, commands):
    assert parse_url(url) == (addresses, Login(commands, None))


async def test_the_database_of_the_url_is_used(stack):
    stack.up(["valkey"])
    key, other = f"test:{next(_ids)}", stack.valkey_url.removesuffix("0") + "3"
    async with connect(
        CacheSettings(valkey_url=other, valkey_timeout_seconds=PATIENCE_SECONDS)
    ) as cache:
        await cache.put_many({key: b"there"}, seconds=60, only_new=False)
        assert await cache.get_many([key]) == [b"there"]
    async with connect(
        CacheSettings(valkey_url=stack.valkey_url, valkey_timeout_seconds=PATIENCE_SECONDS)
    ) as cache:
        assert await cache.get_many([key]) == [None]


@pytest.mark.parametrize("url", ["h:1", "http://h:1", "redis://h", "redis://h:1,i", "redis://h:1,"])
def test_a_malformed_url_is_refused(url):
    with pytest.raises(ValueError, match="must"):
        CacheSettings(valkey_url=url)


def test_rediss_means_tls():
    (address,), login = parse_url("rediss://localhost:1")
    assert address == Address("localhost", 1)
    assert login.tls is not None
    assert login.tls.check_hostname
