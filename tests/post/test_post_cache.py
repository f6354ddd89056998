"""Cached posts against a real Valkey: what is hidden stays so, in whatever order things arrive."""

import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.cache import Script
from services.common.post_cache import CachedPost, PostCache

pytestmark = pytest.mark.prove

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "40"))

_ids = itertools.count(7_000_000)

_AUTHOR = 2**62 + 17


@pytest.fixture(scope="session")
def posts(cache) -> PostCache:
    return PostCache(cache)


def copy(version: int = 1) -> CachedPost:
    return CachedPost(_AUTHOR, b"version %d" % version)


async def test_what_is_kept_comes_back_and_who_is_absent_is_asked_for(posts):
    kept, empty, withdrawn, gone, changed, unknown = (next(_ids) for _ in range(6))
    await posts.put({kept: copy(), empty: CachedPost(1, b""), gone: None, changed: copy()})

    await posts.withdraw([withdrawn])
    await posts.forget([changed])

    found = await posts.get([unknown, changed, gone, withdrawn, empty, kept, kept])
    assert found == {kept: copy(), empty: CachedPost(1, b""), withdrawn: None, gone: None}
    assert await posts.get([]) == {}


async def test_a_copy_that_comes_late_replaces_neither_a_tombstone_nor_a_marker(posts, cache):
    withdrawn, changed = next(_ids), next(_ids)
    await posts.put({withdrawn: copy(), changed: copy()})
    await posts.withdraw([withdrawn])
    await posts.forget([changed])

    await posts.put({withdrawn: copy(), changed: copy()})

    assert await posts.get([withdrawn, changed]) == {withdrawn: None}
    # What the marker's end does.
    await cache.delete(f"post:{{{changed}}}")
    await posts.put({changed: copy(2)})
    assert await posts.get([changed]) == {changed: copy(2)}


async def test_a_withdrawal_that_came_too_late_ends_by_itself(posts, cache):
    withdrawn, asked = next(_ids), next(_ids)
    await posts.withdraw([withdrawn])
    await posts.put({asked: None})

    ttl = Script("return redis.call('TTL', 'post:{' .. ARGV[1] .. '}')")
    # Longer than any question, shorter than anybody's patience.
    assert 10 < await cache.run(ttl, withdrawn, [withdrawn]) <= 60
    assert await cache.run(ttl, asked, [asked]) > 60


@dataclass
class Post:
    """What post would tell, and how far its changes have come. All steps are atomic."""

    post_id: int
    shown: bool = True
    deleted: bool = False
    version: int = 1
    hides: int = 0
    """How many times it was hidden."""
    withdrawn: int = 0
    """The last of them whose withdrawal has returned."""
    renewed: int = 1
    """The version since which no older one may be given out."""

    @property
    def visible(self) -> bool:
        return self.shown and not self.deleted

    async def archive(self, posts: PostCache) -> AsyncIterator[None]:
        self.shown = False
        self.hides += 1
        hide = self.hides
        yield
        await posts.withdraw([self.post_id])
        self.withdrawn = max(self.withdrawn, hide)
        yield
        if self.shown:
            yield
            await posts.forget([self.post_id])

    async def unarchive(self, posts: PostCache) -> AsyncIterator[None]:
        self.shown = True
        yield
        await posts.forget([self.post_id])

    async def delete(self, posts: PostCache) -> AsyncIterator[None]:
        self.deleted = True
        self.hides += 1
        hide = self.hides
        yield
        await posts.withdraw([self.post_id])
        self.withdrawn = max(self.withdrawn, hide)

    async def change(self, posts: PostCache) -> AsyncIterator[None]:
        self.version += 1
        version = self.version
        yield
        await posts.forget([self.post_id])
        self.renewed = max(self.renewed, version)

    async def read(self, posts: PostCache) -> AsyncIterator[None]:
        answer = copy(self.version) if self.visible else None
        yield
        await posts.put({self.post_id: answer})


# Reading is what happens most, and deletion ends it all.
_VERBS = st.sampled_from(["read"] * 4 + ["archive", "unarchive", "change"] * 2 + ["delete"])


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(st.one_of(_VERBS, st.integers(0, 5)), max_size=40), data=st.data())
async def test_in_any_order_nobody_is_given_what_is_hidden_and_nothing_shown_is_lost(
    posts, cache, steps, data
):
    """A step begins one of the verbs, or takes one that is under way a step further."""
    post = Post(next(_ids))
    under_way: list[AsyncIterator[None]] = []

    async def advance(index: int) -> None:
        if await anext(under_way[index], "over") == "over":
            del under_way[index]
        found = (await posts.get([post.post_id])).get(post.post_id)
        if found is not None:
            assert post.visible or post.withdrawn < post.hides, "a withdrawn post is given out"
            assert found in [copy(v) for v in range(post.renewed, post.version + 1)]

    for step in steps:
        if isinstance(step, str):
            under_way.append(getattr(post, step)(posts))
            await advance(-1)
        elif under_way:
            await advance(step % len(under_way))
    while under_way:
        await advance(data.draw(st.integers(0, len(under_way) - 1)))

    # At rest, once a marker has ended, the next reader finds what holds.
    if post.post_id not in await posts.get([post.post_id]):
        await cache.delete(f"post:{{{post.post_id}}}")
        async for _ in post.read(posts):
            pass
    found = await posts.get([post.post_id])
    expected = {post.post_id: copy(post.version)} if post.visible else {}
    assert {key: value for key, value in found.items() if value is not None} == expected
