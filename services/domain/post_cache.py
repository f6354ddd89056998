"""The cache of posts in Valkey: feed reads it; post and fanout invalidate it.

A post is cached once per form: `post1:{<id>}` for gRPC, `post.json1:{<id>}` for REST, whose
responses are assembled from ready-made JSON. The value is one of:

* a copy: the version of this layout (1 byte), the author's id (8 bytes, big-endian), and the
  photomesh.post.v1.Post, serialized or as JSON. Readers write it after a cache miss, from the
  response of the post service.
* a tombstone, which is empty: the post must not be shown. Post and fanout write it when a post is
  hidden or deleted; readers write it when the post service returns no post.
* a marker, `?`: the post has just changed. Readers treat it as a miss.

Readers write only if the key has no value. Only post and fanout overwrite values, with tombstones
and markers but never with copies, and only after the change is committed. That makes each of these
races harmless, or at least rare:

* A reader fetches a post, the post is deleted, the tombstone is written, and the reader writes its
  copy: the key has a value, the tombstone, so nothing is written. In the other order, the tombstone
  replaces the copy. The tombstone's TTL is longer than any request, so after `withdraw` returns, no
  reader gets the post.
* A reader fetches a post, the post changes, the marker is written, and the reader writes its
  outdated copy: the key has a value, the marker, so nothing is written. A fetch that starts after
  the marker is written returns the changed post, so its copy is current when the marker expires.
  The marker only has to outlive the responses that are in flight when it is written: see
  `_MARKER_TTL_SECONDS`.
* A tombstone and a marker for two changes of one post arrive in the wrong order. A marker instead
  of a tombstone is harmless: readers fetch, and the post service returns no post. A tombstone
  instead of a marker would hide a post that is visible again. So a service that withdraws a post
  that can become visible again must check afterwards that it is still hidden, and otherwise
  `forget` it; the post service does. Deletions are final. If the cache or the network delays a
  withdrawal until after that check, the post is hidden for a minute.
* All or some keys are lost: readers fetch. If a tombstone is lost while a copy from before the
  change is in flight, that copy is written. For one key in the memory of one server, that requires
  two rare events within two seconds, and a third one, because fanout repeats each withdrawal when
  it handles the event.
* A replica without the tombstone is promoted, so the old copy is served again. Replicas lag by
  milliseconds, and fanout repeats the withdrawal tens of milliseconds later or, if the cache
  rejected writes meanwhile, after the promotion.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from services.chassis.cache.client import Cache
from services.chassis.cache.scripts import load

VERSION = 1
"""The version of copies, in both forms. At most 62, so that it differs from a marker.

Raise it when a process of the previous release would misread a copy, or a new one must not serve
copies of the previous release: for example, when the order of fields or the JSON changes. A reader
treats copies of other versions as misses, and replaces older ones. So during a rollout, processes
of the previous release fetch posts that newer processes have cached.

Tombstones and markers have no version, because they apply to readers of every release. Change the
number in the key spaces of `Form` only when tombstones or markers change, and only after a release
that writes them to both key spaces.
"""

_TTL_SECONDS = 3600
"""One hour. The media URLs in a post are valid for at least two, see services/domain/cdn.py.

Tombstones that readers write have the same TTL: each saves fetches.
"""

_TOMBSTONE_TTL_SECONDS = 60
"""The TTL of a withdrawal's tombstone. Readers that fetch after that write their own."""

_MARKER_TTL_SECONDS = 5
"""Twice the longest time between the start of a fetch and the end of writing its response: the
timeout of a call to post (2 s, services/chassis/rpc/client.py) and half a second for the cache."""

_TOMBSTONE = b""
_MARKER = b"?"

_AUTHOR = slice(1, 9)
_POST = slice(9, None)

_DISCARD_OUTDATED = load(Path(__file__).with_name("discard_outdated_posts.lua"))


class Form(StrEnum):
    """How a post is encoded. Each form is a key space."""

    PROTO = "post1"
    """A serialized photomesh.post.v1.Post."""
    JSON = "post.json1"
    """The JSON of the REST API, in UTF-8."""


class CachedPost(NamedTuple):
    """A post as it is served to everyone who may see it."""

    author_id: int
    """The author. Callers check whether a reader may see the author's posts."""
    post: bytes
    """The post in the form of the cache."""


class PostCache:
    """The cached posts. Every method may raise Unavailable.

    `get` and `put` use one form; `withdraw` and `forget` affect all.
    """

    def __init__(self, cache: Cache, form: Form = Form.PROTO) -> None:
        self._cache = cache
        self._form = form

    async def get(self, post_ids: Sequence[int]) -> dict[int, CachedPost | None]:
        """Returns the cached posts: None for one that must not be shown; misses are absent."""
        values = await self._cache.get_many(_keys(self._form, post_ids))
        found: dict[int, CachedPost | None] = {}
        outdated = []
        for post_id, value in zip(post_ids, values, strict=True):
            if value == _TOMBSTONE:
                found[post_id] = None
            elif value is not None:
                if value[0] == VERSION:
                    found[post_id] = _decode(value)
                elif value[0] < VERSION:
                    outdated.append(post_id)
        if outdated:
            # Otherwise they would remain misses until they expire: `put` does not overwrite.
            await self._cache.run_on_owners(
                _DISCARD_OUTDATED, outdated, space=self._form, version=VERSION
            )
        return found

    async def put(self, posts: Mapping[int, CachedPost | None]) -> None:
        """Caches responses of the post service for keys that have no value.

        The responses must be complete and to calls made in the last two seconds. None: the post
        must not be shown.
        """
        await self._cache.put_many(
            dict(zip(_keys(self._form, posts), map(_encode, posts.values()), strict=True)),
            seconds=_TTL_SECONDS,
            only_new=True,
        )

    async def withdraw(self, post_ids: Iterable[int]) -> None:
        """Ensures that no reader gets the posts after this returns.

        Call it after the change is committed. If a post may become visible again, check afterwards
        whether it has, and if so, `forget` it.
        """
        await self._replace(post_ids, _TOMBSTONE, _TOMBSTONE_TTL_SECONDS)

    async def forget(self, post_ids: Iterable[int]) -> None:
        """Makes readers fetch posts that have changed or are visible again.

        Call it after the change is committed.
        """
        await self._replace(post_ids, _MARKER, _MARKER_TTL_SECONDS)

    async def _replace(self, post_ids: Iterable[int], value: bytes, seconds: int) -> None:
        every = list(post_ids)
        values = dict.fromkeys((key for form in Form for key in _keys(form, every)), value)
        await self._cache.put_many(values, seconds=seconds, only_new=False)


def _keys(form: Form, post_ids: Iterable[int]) -> list[str]:
    # Concatenated, because formatting an enum member is slow.
    prefix = form + ":{"
    return [f"{prefix}{post_id}}}" for post_id in post_ids]


def _encode(post: CachedPost | None) -> bytes:
    if post is None:
        return _TOMBSTONE
    return b"%c%b%b" % (VERSION, post.author_id.to_bytes(8, "big"), post.post)


def _decode(copy: bytes) -> CachedPost:
    return CachedPost(int.from_bytes(copy[_AUTHOR], "big"), copy[_POST])
