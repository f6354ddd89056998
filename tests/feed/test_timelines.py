"""Home timelines against a real Valkey: no gaps, no lost posts, whatever happens at once."""

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.common.cache import connect_redis
from services.common.config import CacheSettings
from services.common.errors import Unavailable
from services.common.timelines import CAP, Extent, Timelines

_readers = itertools.count(1_000_000)


@pytest.fixture(scope="session")
async def valkey(infrastructure) -> AsyncIterator[Redis]:
    async with connect_redis(CacheSettings(valkey_url=infrastructure.valkey_url)) as valkey:
        yield valkey


@pytest.fixture(scope="session")
def timelines(valkey) -> Timelines:
    return Timelines(valkey)


@pytest.fixture
def reader() -> int:
    return next(_readers)


def post_id(age: int, shard: int = 7, sequence: int = 0) -> int:
    return age << 23 | shard << 10 | sequence


async def fill(timelines: Timelines, reader: int, post_ids: list[int], *, whole: bool) -> None:
    marker = await timelines.begin_rebuild(reader)
    assert marker is not None
    assert await timelines.finish_rebuild(reader, marker, post_ids, whole=whole)


async def every_page(timelines: Timelines, reader: int, size: int) -> list[int]:
    found: list[int] = []
    while True:
        page = await timelines.read(reader, found[-1] if found else 0, size)
        found += page.post_ids
        if len(page.post_ids) < size:
            return found


async def test_a_push_reaches_only_timelines_that_exist(timelines, reader):
    absent = next(_readers)
    await fill(timelines, reader, [], whole=True)

    assert await timelines.push([reader, absent], [post_id(1)]) == 1

    assert (await timelines.read(reader, 0, 10)).post_ids == [post_id(1)]
    assert (await timelines.read(absent, 0, 10)).extent is Extent.ABSENT


async def test_an_older_post_never_evicts_a_newer_one(timelines, reader):
    newest = [post_id(age) for age in range(2 * CAP, CAP, -1)]
    await fill(timelines, reader, newest, whole=False)

    await timelines.push([reader], [post_id(3)])
    assert await every_page(timelines, reader, 100) == newest

    await timelines.push([reader], [post_id(2 * CAP + 1)])
    assert await every_page(timelines, reader, 100) == [post_id(2 * CAP + 1), *newest[:-1]]


async def test_a_timeline_stays_packed_in_20_bytes_an_entry(timelines, valkey, reader):
    now = 28_000_000_000
    await fill(timelines, reader, [post_id(now + n) for n in range(CAP, 0, -1)], whole=False)
    await timelines.push([reader], [post_id(now + CAP + n) for n in range(1, 40)])

    assert await valkey.object("ENCODING", f"feed:{reader}") == b"listpack"
    assert await valkey.zcard(f"feed:{reader}") == CAP


async def test_nothing_is_put_below_a_gap(timelines, reader):
    """A timeline that is not whole ends where the database goes on; below it nothing may stand."""
    await fill(timelines, reader, [post_id(20), post_id(10)], whole=False)

    await timelines.push([reader], [post_id(5), post_id(15)])

    held = await timelines.read(reader, 0, 10)
    assert held.post_ids == [post_id(20), post_id(15), post_id(10)]
    assert held.extent is Extent.PARTIAL


async def test_what_is_pushed_during_a_rebuild_is_kept(timelines, reader):
    marker = await timelines.begin_rebuild(reader)
    assert await timelines.begin_rebuild(reader) is None
    await timelines.push([reader], [post_id(9), post_id(2)])
    assert (await timelines.read(reader, 0, 10)).extent is Extent.REBUILDING

    assert await timelines.finish_rebuild(reader, marker, [post_id(5), post_id(1)], whole=True)

    held = await timelines.read(reader, 0, 10)
    assert held.post_ids == [post_id(age) for age in (9, 5, 2, 1)]
    assert held.extent is Extent.WHOLE


async def test_a_rebuild_that_was_overtaken_by_a_drop_is_refused(timelines, reader):
    outdated = await timelines.begin_rebuild(reader)
    await timelines.drop(reader)
    current = await timelines.begin_rebuild(reader)

    assert not await timelines.finish_rebuild(reader, outdated, [post_id(666)], whole=True)
    assert await timelines.finish_rebuild(reader, current, [post_id(1)], whole=True)
    assert (await timelines.read(reader, 0, 10)).post_ids == [post_id(1)]


async def test_a_rebuild_that_was_given_up_ends_by_itself(timelines, valkey, reader):
    await timelines.begin_rebuild(reader)
    await timelines.push([reader], [post_id(1)])
    await timelines.read(reader, 0, 10)

    assert 0 < await valkey.ttl(f"feed:{reader}") <= 10


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    ages=st.lists(st.integers(1, 40), max_size=80),
    size=st.integers(1, 12),
    data=st.data(),
)
async def test_pages_meet_without_gap_or_repeat(timelines, ages, size, data):
    """Also when many posts share their millisecond and their shard."""
    reader = next(_readers)
    ids = sorted(
        {post_id(age, data.draw(st.integers(1, 2)), data.draw(st.integers(0, 9))) for age in ages}
    )
    await fill(timelines, reader, [], whole=True)
    for start in range(0, len(ids), 7):
        await timelines.push([reader], ids[start : start + 7])

    assert await every_page(timelines, reader, size) == ids[::-1]


async def test_a_cache_that_is_away_is_told(reader):
    async with connect_redis(CacheSettings(valkey_url="redis://127.0.0.1:1/0")) as nowhere:
        with pytest.raises(Unavailable):
            await Timelines(nowhere).read(reader, 0, 10)
