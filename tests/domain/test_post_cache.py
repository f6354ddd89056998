"""Cached posts in a real Valkey: hidden posts stay hidden, whatever the order of commands."""

import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis.cache.scripts import Script
from services.domain import post_cache
from services.domain.post_cache import VERSION, CachedPost, Form, PostCache

pytestmark = pytest.mark.prove

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "40"))

_ids = itertools.count(7_000_000)

_AUTHOR = 2**62 + 17


@pytest.fixture(scope="session")
def posts(cache) -> PostCache:
    return PostCache(cache)


def key_of(post_id: int, space: str = Form.PROTO) -> str:
    return f"{space}:{{{post_id}}}"


def copy(version: int = 1) -> CachedPost:
    return CachedPost(_AUTHOR, b"version %d" % version)


async def test_cached_posts_are_returned_and_misses_are_absent(posts):
    kept, empty, withdrawn, gone, changed, unknown = (next(_ids) for _ in range(6))
    await posts.put({kept: copy(), empty: CachedPost(1, b""), gone: None, changed: copy()})

    await posts.withdraw([withdrawn])
    await posts.forget([changed])

    found = await posts.get([unknown, changed, gone, withdrawn, empty, kept, kept])
    assert found == {kept: copy(), empty: CachedPost(1, b""), withdrawn: None, gone: None}
    assert await posts.get([]) == {}


async def test_a_late_copy_replaces_neither_a_tombstone_nor_a_marker(posts, cache):
    withdrawn, changed = next(_ids), next(_ids)
    await posts.put({withdrawn: copy(), changed: copy()})
    await posts.withdraw([withdrawn])
    await posts.forget([changed])

    await posts.put({withdrawn: copy(), changed: copy()})

    assert await posts.get([withdrawn, changed]) == {withdrawn: None}
    # The marker expires.
    await cache.delete(key_of(changed))
    await posts.put({changed: copy(2)})
    assert await posts.get([changed]) == {changed: copy(2)}


async def test_the_tombstone_of_a_withdrawal_expires_soon(posts, cache):
    withdrawn, asked = next(_ids), next(_ids)
    await posts.withdraw([withdrawn])
    await posts.put({asked: None})

    ttl = Script(f"""
        --!arguments owner
        return redis.call('TTL', '{Form.PROTO}:{{' .. owner .. '}}')
    """)
    # Longer than any request to post takes, but not for long.
    assert 10 < await cache.run(ttl, withdrawn) <= 60
    assert await cache.run(ttl, asked) > 60


@pytest.mark.parametrize("form", Form)
async def test_a_copy_of_another_version_is_a_miss(cache, form):
    posts = PostCache(cache, form)
    older, newer = next(_ids), next(_ids)
    planted = {
        key_of(older, form): bytes([VERSION - 1]) + b"in another layout",
        key_of(newer, form): bytes([VERSION + 1]),
    }
    await cache.put_many(planted, seconds=60, only_new=False)

    assert await posts.get([older, newer]) == {}

    await posts.put({older: copy(), newer: copy()})
    assert await posts.get([older, newer]) == {older: copy()}
    # Readers of the newer release still use theirs.
    assert await cache.get_many([key_of(newer, form)]) == [planted[key_of(newer, form)]]


async def test_withdrawals_reach_readers_of_other_versions(posts, cache):
    withdrawn, changed = next(_ids), next(_ids)
    keys = {post_id: [key_of(post_id, form) for form in Form] for post_id in (withdrawn, changed)}
    for version in (VERSION - 1, VERSION + 1):
        values = dict.fromkeys([*keys[withdrawn], *keys[changed]], bytes([version]) + b"a copy")
        await cache.put_many(values, seconds=60, only_new=False)

        await posts.withdraw([withdrawn])
        await posts.forget([changed])

        assert await cache.get_many(keys[withdrawn]) == [b""] * len(Form)
        assert await cache.get_many(keys[changed]) == [b"?"] * len(Form)


async def test_tombstones_and_markers_are_not_taken_for_outdated_copies(posts, cache, monkeypatch):
    """Not even by the last version, which is next to a marker."""
    withdrawn, changed, cached = next(_ids), next(_ids), next(_ids)
    await posts.put({cached: copy()})
    await posts.withdraw([withdrawn])
    await posts.forget([changed])
    monkeypatch.setattr(post_cache, "VERSION", 62)

    # As when they replace an outdated copy just after it was read.
    await cache.run_on_owners(
        post_cache._DISCARD_OUTDATED,
        [withdrawn, changed, cached],
        space=Form.PROTO,
        version=post_cache.VERSION,
    )

    assert await posts.get([withdrawn, changed, cached]) == {withdrawn: None}
    await posts.put({changed: copy(2), cached: copy(2)})
    assert await posts.get([withdrawn, changed, cached]) == {withdrawn: None, cached: copy(2)}


async def test_keys_of_other_key_spaces_are_neither_read_nor_changed(cache):
    """Releases with other tombstones and markers run concurrently."""
    plant = Script("""
        --!arguments space, owner
        redis.call('RPUSH', space .. ':{' .. owner .. '}', 'of another release')
    """)
    length = Script("""
        --!arguments space, owner
        return redis.call('LLEN', space .. ':{' .. owner .. '}')
    """)
    post_id = next(_ids)
    spaces = {f"{form.rstrip('0123456789')}{n}" for form in Form for n in ("", 0, 1, 2, 10)}
    foreign = spaces - set(Form)
    assert len(spaces) - len(foreign) == len(Form)
    for space in foreign:
        await cache.run(plant, post_id, space=space)

    for form in Form:
        posts = PostCache(cache, form)
        assert await posts.get([post_id]) == {}
        await posts.put({post_id: copy()})
        assert await posts.get([post_id]) == {post_id: copy()}
    await PostCache(cache).withdraw([post_id])
    assert await PostCache(cache).get([post_id]) == {post_id: None}

    for space in foreign:
        assert await cache.run(length, post_id, space=space) == 1


@dataclass
class Post:
    """A post in the post service, and the progress of its changes. Steps are atomic."""

    post_id: int
    shown: bool = True
    deleted: bool = False
    version: int = 1
    hides: int = 0
    """How often it was hidden."""
    withdrawn: int = 0
    """The last hide whose withdrawal has returned."""
    renewed: int = 1
    """The oldest version that readers may still get."""

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


# Mostly reads. A deletion is final.
_VERBS = st.sampled_from(["read"] * 4 + ["archive", "unarchive", "change"] * 2 + ["delete"])


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(st.one_of(_VERBS, st.integers(0, 5)), max_size=40), data=st.data())
async def test_in_any_order_hidden_posts_stay_hidden_and_visible_ones_are_found(
    posts, cache, steps, data
):
    """A step starts one of the verbs, or advances one that is in progress."""
    post = Post(next(_ids))
    under_way: list[AsyncIterator[None]] = []

    async def advance(index: int) -> None:
        if await anext(under_way[index], "over") == "over":
            del under_way[index]
        found = (await posts.get([post.post_id])).get(post.post_id)
        if found is not None:
            assert post.visible or post.withdrawn < post.hides, "a withdrawn post was returned"
            assert found in [copy(v) for v in range(post.renewed, post.version + 1)]

    for step in steps:
        if isinstance(step, str):
            under_way.append(getattr(post, step)(posts))
            await advance(-1)
        elif under_way:
            await advance(step % len(under_way))
    while under_way:
        await advance(data.draw(st.integers(0, len(under_way) - 1)))

    # Finally, after the marker has expired, the next reader finds the current state.
    if post.post_id not in await posts.get([post.post_id]):
        await cache.delete(key_of(post.post_id))
        async for _ in post.read(posts):
            pass
    found = await posts.get([post.post_id])
    expected = {post.post_id: copy(post.version)} if post.visible else {}
    assert {key: value for key, value in found.items() if value is not None} == expected
