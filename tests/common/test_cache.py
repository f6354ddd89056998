"""The cache client against a real Valkey."""

import itertools

import pytest

from services.common.cache import Script, connect
from services.common.config import CacheSettings
from services.common.errors import Unavailable

_ids = itertools.count(5_000_000)

_COUNT = Script("""
    local counts = {}
    for _, id in ipairs(ARGV) do
        table.insert(counts, redis.call('INCR', 'count:{' .. id .. '}'))
    end
    return counts
""")


async def test_a_script_runs_also_where_it_is_not_known_yet(cache):
    owner = next(_ids)
    unknown = Script(_COUNT.text + f"-- {owner}")

    assert await cache.run(unknown, owner, [owner]) == [1]
    assert await cache.run(unknown, owner, [owner]) == [2]


async def test_a_script_reaches_every_owner_once(cache):
    owners = [next(_ids) for _ in range(100)]

    results = await cache.run_on_owners(_COUNT, owners, [])

    assert [count for result in results for count in result] == [1] * len(owners)
    assert await cache.run(_COUNT, owners[50], [owners[50]]) == [2]
    assert await cache.run_on_owners(_COUNT, [], []) == []


async def test_values_come_back_in_the_order_of_their_keys(cache):
    keys = [f"test:{next(_ids)}" for _ in range(50)]
    values = {key: key.encode() * 100 for key in keys[::2]}
    await cache.put_many(values, seconds=60, only_new=False)

    assert await cache.get_many(keys) == [values.get(key) for key in keys]

    await cache.delete(keys[0])
    assert await cache.get_many(keys[:1]) == [None]
    assert await cache.get_many([]) == []
    await cache.put_many({}, seconds=60, only_new=False)


async def test_only_new_leaves_what_is_there(cache):
    there, new = (f"test:{next(_ids)}" for _ in range(2))
    await cache.put_many({there: b""}, seconds=60, only_new=False)

    await cache.put_many({there: b"other", new: b"value"}, seconds=60, only_new=True)
    assert await cache.get_many([there, new]) == [b"", b"value"]

    await cache.put_many({there: b"other"}, seconds=60, only_new=False)
    assert await cache.get_many([there]) == [b"other"]


async def test_a_cache_that_is_away_is_told():
    async with connect(CacheSettings(valkey_url="redis://127.0.0.1:1/0")) as nowhere:
        for attempt in (
            nowhere.run(_COUNT, 1, []),
            nowhere.run_on_owners(_COUNT, [1], []),
            nowhere.get_many(["a"]),
            nowhere.put_many({"a": b""}, seconds=1, only_new=True),
            nowhere.delete("a"),
        ):
            with pytest.raises(Unavailable):
                await attempt
