"""Timelines in a real Valkey have no gaps and lose no posts, whatever runs concurrently."""

import itertools
import os
import re
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster

from services.chassis.cache.client import connect
from services.chassis.config import CacheSettings
from services.chassis.errors import Unavailable
from services.domain.timelines import CAP, AuthorTimelines, Extent, HomeSlice, HomeTimelines, Slice
from services.domain.timelines.layout import AUTHOR, FEED, RULES

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "10"))

_readers = itertools.count(1_000_000)


@pytest.fixture(scope="session")
def timelines(cache) -> HomeTimelines:
    return HomeTimelines(cache)


@pytest.fixture
async def valkey(cache_url) -> AsyncIterator[Redis | RedisCluster]:
    """Yields a client that inspects keys directly."""
    async with (RedisCluster if "," in cache_url else Redis).from_url(first(cache_url)) as valkey:
        yield valkey


def first(url: str) -> str:
    return url.partition(",")[0]


@pytest.fixture
def reader() -> int:
    return next(_readers)


def post_id(age: int, shard: int = 7, sequence: int = 0) -> int:
    return age << 23 | shard << 10 | sequence


async def fill(timelines: HomeTimelines, reader: int, post_ids: list[int], *, whole: bool) -> None:
    marker = await timelines.begin_rebuild(reader)
    assert marker is not None
    assert await timelines.finish_rebuild(reader, marker, post_ids, whole=whole, version=1)


async def every_page(timelines: HomeTimelines, reader: int, size: int) -> list[int]:
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
    held = await every_page(timelines, reader, 100)
    assert held == [post_id(2 * CAP + 1), *newest][: len(held)]
    assert len(held) >= CAP


async def test_an_entry_takes_13_bytes_at_most(timelines, valkey, reader):
    now = 28_000_000_000
    await fill(timelines, reader, [post_id(now + n) for n in range(CAP, 0, -1)], whole=False)
    for n in range(1, 2 * CAP):
        await timelines.push([reader], [post_id(now + CAP + n)])
    # In the middle of the list.
    await timelines.push([reader], [post_id(now + 2 * CAP, shard) for shard in range(8, 1000)])

    held = await every_page(timelines, reader, 100)
    assert CAP <= len(held) < 1.1 * CAP
    assert await valkey.memory_usage(f"{FEED}:{{{reader}}}") <= 13 * len(held)


async def test_posts_below_a_gap_are_not_added(timelines, reader):
    """Readers of a partial timeline continue in the database from its oldest member."""
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

    assert await timelines.finish_rebuild(
        reader, marker, [post_id(5), post_id(1)], whole=True, version=1
    )

    held = await timelines.read(reader, 0, 10)
    assert held.post_ids == [post_id(age) for age in (9, 5, 2, 1)]
    assert held.extent is Extent.WHOLE


async def test_a_drop_makes_a_rebuild_outdated(timelines, reader):
    outdated = await timelines.begin_rebuild(reader)
    await timelines.drop(reader)
    current = await timelines.begin_rebuild(reader)

    assert not await timelines.finish_rebuild(
        reader, outdated, [post_id(666)], whole=True, version=1
    )
    assert await timelines.finish_rebuild(reader, current, [post_id(1)], whole=True, version=1)
    assert (await timelines.read(reader, 0, 10)).post_ids == [post_id(1)]


async def test_a_rebuild_that_never_finishes_expires(timelines, valkey, reader):
    await timelines.begin_rebuild(reader)
    await timelines.push([reader], [post_id(1)])
    await timelines.read(reader, 0, 10)

    assert 0 < await valkey.ttl(f"{FEED}:{{{reader}}}") <= 10


async def test_retracted_posts_are_removed(timelines, reader):
    await fill(timelines, reader, [post_id(3), post_id(2), post_id(1)], whole=True)

    await timelines.retract([reader, next(_readers)], [post_id(2), post_id(7)])

    assert (await timelines.read(reader, 0, 10)).post_ids == [post_id(3), post_id(1)]


async def test_a_timeline_is_cut_below_an_incomplete_push(timelines, reader):
    """Otherwise the author's older posts would be missing between those of others."""
    await fill(timelines, reader, [post_id(9), post_id(3), post_id(1)], whole=True)

    await timelines.push([reader], [post_id(8), post_id(4)], complete_from=post_id(4))

    held = await timelines.read(reader, 0, 10)
    assert held.post_ids == [post_id(9), post_id(8), post_id(4)]
    assert held.extent is Extent.PARTIAL


async def test_an_incomplete_push_abandons_a_rebuild(timelines, reader):
    marker = await timelines.begin_rebuild(reader)

    await timelines.push([reader], [post_id(8)], complete_from=post_id(8))

    assert not await timelines.finish_rebuild(reader, marker, [post_id(1)], whole=True, version=1)


async def test_authors_are_hidden_shown_and_pulled(timelines, reader):
    await fill(timelines, reader, [post_id(1)], whole=True)

    await timelines.hide(reader, 71, version=2)
    assert await timelines.pull(reader, 72, version=2)
    held = await timelines.read(reader, 0, 10)
    assert (held.hidden, held.pulled) == ({71}, [72])

    assert await timelines.show(reader, 71, version=3)
    assert await timelines.show(reader, 72, version=3)
    held = await timelines.read(reader, 0, 10)
    assert (held.hidden, held.pulled) == (frozenset(), [])


async def test_relations_read_before_a_hide_cannot_show(timelines, reader):
    await fill(timelines, reader, [], whole=True)
    await timelines.hide(reader, 71, version=5)

    assert not await timelines.show(reader, 71, version=4)
    assert not await timelines.pull(reader, 71, version=4)

    assert (await timelines.read(reader, 0, 10)).hidden == {71}


async def test_relations_read_before_a_show_cannot_hide(timelines, reader):
    """A stalled cache may have delayed such a command."""
    await fill(timelines, reader, [], whole=True)
    assert await timelines.show(reader, 71, version=5)

    assert not await timelines.hide(reader, 71, version=4)
    assert (await timelines.read(reader, 0, 10)).hidden == frozenset()

    assert await timelines.hide(reader, 71, version=6)
    assert (await timelines.read(reader, 0, 10)).hidden == {71}


async def test_a_rebuild_counts_as_a_show_and_a_hide(timelines, reader):
    marker = await timelines.begin_rebuild(reader)
    assert await timelines.hide(reader, 71, version=3)
    assert await timelines.finish_rebuild(
        reader, marker, [], whole=True, version=4, pulled=[71], hidden=[73]
    )

    assert not await timelines.hide(reader, 72, version=3)
    assert not await timelines.show(reader, 73, version=3)

    held = await timelines.read(reader, 0, 10)
    assert (held.hidden, held.pulled) == ({73}, [71])


async def test_hiding_an_author_makes_a_rebuild_outdated(timelines, reader):
    """It may have read the relations before the hide."""
    marker = await timelines.begin_rebuild(reader)

    assert await timelines.hide(reader, 71, version=5)

    assert not await timelines.finish_rebuild(reader, marker, [post_id(1)], whole=True, version=4)
    await fill(timelines, reader, [], whole=True)
    assert (await timelines.read(reader, 0, 10)).hidden == frozenset()


async def test_showing_an_author_makes_a_rebuild_outdated(timelines, reader):
    """It may have read the relations before the show."""
    marker = await timelines.begin_rebuild(reader)

    assert await timelines.show(reader, 71, version=5)

    assert not await timelines.finish_rebuild(
        reader, marker, [], whole=True, version=4, hidden=[71]
    )


async def test_an_author_is_pulled_by_all_who_do_not_hide_it(timelines, reader):
    fan, absent = next(_readers), next(_readers)
    await fill(timelines, reader, [], whole=True)
    await fill(timelines, fan, [], whole=True)
    await timelines.hide(reader, 71, version=1)

    await timelines.pull_all([reader, fan, absent], 71)
    assert (await timelines.read(fan, 0, 10)).pulled == [71]
    assert (await timelines.read(reader, 0, 10)).pulled == []
    assert (await timelines.read(absent, 0, 10)).extent is Extent.ABSENT

    await timelines.unpull_all([reader, fan, absent], 71)
    assert (await timelines.read(fan, 0, 10)).pulled == []
    assert (await timelines.read(reader, 0, 10)).hidden == {71}


@pytest.mark.parametrize("lost", [FEED, RULES])
async def test_a_timeline_is_rebuilt_if_either_of_its_keys_is_lost(timelines, valkey, reader, lost):
    """The cache may evict one without the other."""
    await fill(timelines, reader, [post_id(1)], whole=True)
    await timelines.hide(reader, 71, version=1)
    await valkey.delete(f"{lost}:{{{reader}}}")

    await timelines.hide(reader, 72, version=2)

    assert (await timelines.read(reader, 0, 10)).extent is Extent.ABSENT
    await fill(timelines, reader, [], whole=True)
    assert (await timelines.read(reader, 0, 10)).hidden == frozenset()


async def test_authors_timelines_are_read_together(cache):
    known, absent = next(_readers), next(_readers)
    timelines = AuthorTimelines(cache)
    marker = await timelines.begin_rebuild(known)
    await timelines.push([known, absent], [post_id(9)])
    assert await timelines.finish_rebuild(known, marker, [post_id(5)], whole=True)

    found = await timelines.read([absent, known], post_id(9), 10)

    assert found[known] == Slice([post_id(5)], Extent.WHOLE)
    assert found[absent] == Slice([], Extent.ABSENT)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_timelines_have_no_gaps_after_any_sequence_of_changes(timelines, valkey, data):
    reader = next(_readers)
    chance = data.draw(st.randoms(use_true_random=False))
    # The posts in the database. No pushed post is older than the first.
    posts = {post_id(age, 3) for age in range(1, data.draw(st.integers(1, CAP)))}
    await fill(timelines, reader, sorted(posts, reverse=True), whole=True)
    for _ in range(data.draw(st.integers(1, 12))):
        newest = max(posts, default=0) >> 23
        what = data.draw(st.sampled_from(["new", "late", "old", "incomplete", "retract", "evict"]))
        if what == "new":
            for age in range(data.draw(st.integers(1, 200))):
                posts.add(post_id(newest + age + 1))
                await timelines.push([reader], [post_id(newest + age + 1)])
        elif what == "late":
            # One by one, some places after the newest.
            for _ in range(data.draw(st.integers(1, 40))):
                late = post_id(max(newest - chance.randint(0, 30), 1), chance.randint(4, 9))
                posts.add(late)
                await timelines.push([reader], [late])
        elif what in ("old", "incomplete"):
            ids = [
                post_id(chance.randint(1, newest + 1), 9, n) for n in range(chance.randint(1, 60))
            ]
            posts.update(ids)
            complete_from = min(ids) if what == "incomplete" else 0
            await timelines.push([reader], ids, complete_from=complete_from)
        elif what == "retract":
            ids = chance.sample(sorted(posts), min(len(posts), 30))
            posts.difference_update(ids)
            await timelines.retract([reader], ids)
        else:
            await valkey.delete(f"{FEED}:{{{reader}}}")

        held = await every_page(timelines, reader, chance.choice([7, 100, 1000]))
        assert held == sorted(posts, reverse=True)[: len(held)]
        end = await timelines.read(reader, held[-1] if held else 0, 1)
        if end.extent is Extent.WHOLE:
            assert len(held) == len(posts)
        if end.extent is Extent.ABSENT:
            await fill(
                timelines, reader, sorted(posts, reverse=True)[:CAP], whole=len(posts) <= CAP
            )


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
async def test_pages_have_no_gap_or_repeat(timelines, ages, size, data):
    """Even if many posts share their millisecond and their shard."""
    reader = next(_readers)
    ids = sorted(
        {post_id(age, data.draw(st.integers(1, 2)), data.draw(st.integers(0, 9))) for age in ages}
    )
    await fill(timelines, reader, [], whole=True)
    for start in range(0, len(ids), 7):
        await timelines.push([reader], ids[start : start + 7])

    assert await every_page(timelines, reader, size) == ids[::-1]


async def test_keys_of_other_versions_are_neither_read_nor_changed(
    timelines, valkey, cache, reader
):
    """Releases with different layouts run concurrently."""
    authors = AuthorTimelines(cache)
    spaces = {FEED, RULES, AUTHOR}
    foreign = {
        f"{space.rstrip('0123456789')}{version}:{{{reader}}}"
        for space in spaces
        for version in ("", 0, 1, 2, 9, 10, 99)
    } - {f"{space}:{{{reader}}}" for space in spaces}
    for key in foreign:
        # Scripts would fail on this type.
        await valkey.set(key, "of another release")

    assert (await timelines.read(reader, 0, 10)).extent is Extent.ABSENT
    assert await timelines.push([reader], [post_id(2)]) == 0
    await fill(timelines, reader, [post_id(1)], whole=True)
    assert await timelines.push([reader], [post_id(2), post_id(3)]) == 1
    await timelines.retract([reader], [post_id(3)])
    assert await timelines.pull(reader, 72, version=1)
    assert await timelines.hide(reader, 71, version=1)
    await timelines.pull_all([reader], 73)
    held = await timelines.read(reader, 0, 10)
    assert (held.post_ids, held.hidden) == ([post_id(2), post_id(1)], {71})
    assert set(held.pulled) == {72, 73}
    assert await timelines.newer([reader], post_id(1)) == {
        reader: HomeSlice([post_id(2)], Extent.WHOLE, held.pulled, held.hidden)
    }
    marker = await authors.begin_rebuild(reader)
    assert await authors.finish_rebuild(reader, marker, [post_id(5)], whole=True)
    assert (await authors.read([reader], 0, 10))[reader].post_ids == [post_id(5)]

    keys = {key.decode() async for key in valkey.scan_iter(f"*{{{reader}}}")}
    assert keys - foreign == {f"{space}:{{{reader}}}" for space in spaces}
    await timelines.drop(reader)
    await authors.drop(reader)
    assert {key.decode() async for key in valkey.scan_iter(f"*{{{reader}}}")} == foreign
    for key in foreign:
        assert await valkey.get(key) == b"of another release"


def test_every_key_space_carries_a_version():
    for space in (FEED, RULES, AUTHOR):
        assert re.fullmatch(r"[a-z]+[1-9][0-9]*", space)


async def test_an_unreachable_cache_is_unavailable(reader):
    async with connect(CacheSettings(valkey_url="redis://127.0.0.1:1/0")) as nowhere:
        with pytest.raises(Unavailable):
            await HomeTimelines(nowhere).read(reader, 0, 10)
