"""Posts as they are served, in Valkey: what feed reads, and what post and fanout withdraw from.

A post is kept in each form that it is read in: `post:{<id>}` for gRPC, `post.json:{<id>}` for
REST, whose answers are put together out of ready-made JSON. Each holds one of three things:

* a copy: the author's id, 8 bytes big-endian, and the photomesh.post.v1.Post, serialised or as
  JSON. Readers put it after they asked post, and only where there is nothing;
* a tombstone, which is empty: nobody may be shown the post. Put by whoever hid or deleted it, and
  by readers whom post told so;
* a marker, one byte: the post changed a moment ago. Readers pass it by and ask post.

Readers put only where there is nothing. Only post and fanout overwrite what is there, with
tombstones and markers and never with copies, and only after the change was committed. That decides
each race:

* A reader asks post, the post is deleted, the tombstone is put, the reader puts its copy: it finds
  the tombstone and puts nothing. In the other order the tombstone replaces the copy. So once
  `withdraw` has returned, no reader is given the post, whatever is under way: the tombstone lives
  for longer than any question.
* A reader asks post, the post changes, the marker is put, the reader puts its copy, which is out
  of date: it finds the marker and puts nothing. What is asked after the marker is put is told the
  change, so its answer is good when the marker has gone. The marker has to outlive only those
  answers that are under way while it is put: see `_SETTLE_SECONDS`.
* A tombstone and a marker, of two changes of one post, arrive in the wrong order. A marker in the
  place of a tombstone is harmless: readers ask, and post tells that there is nothing to show. A
  tombstone in the place of a marker would hide a post that was shown again. So whoever withdraws
  what may be shown again must look once more afterwards whether it still is to be hidden, and else
  `forget`; post does. What is deleted stays so. A withdrawal that the cache, or the network, held
  back for so long that nobody looks any more hides the post for a minute.
* Everything is lost, or some of it is evicted: readers ask. A tombstone that is lost while a copy
  is under way that was asked for before the change lets that copy in. Of one key in the memory of
  one server that means two rare things within two seconds; fanout, which repeats each withdrawal
  when it handles the event, makes it three.
* A replica is promoted that has not heard of the tombstone: then the old copy is back. Replicas lag
  by milliseconds, and fanout's repetition comes some tens of them later, or, if nothing could be
  written meanwhile, after the promotion.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from services.common.cache import Cache

_LIFE_SECONDS = 3600
"""An hour: the media URLs inside are good for at least twice that, see services/common/cdn.py.

A tombstone that readers put lives for as long: it saves them the question.
"""

_WITHDRAWN_SECONDS = 60
"""How long the tombstone of a withdrawal lives: readers who ask after that put their own."""

_SETTLE_SECONDS = 5
"""Twice what passes at most between a question to post and the end of putting its answer: the
question's 2 s (services/common/client.py) and half a second for the cache."""

_TOMBSTONE = b""
_MARKER = b"?"

_AUTHOR_BYTES = 8


class Form(StrEnum):
    """How a post is written; the names are those of the keys."""

    PROTO = "post"
    """A serialised photomesh.post.v1.Post."""
    JSON = "post.json"
    """Its JSON as REST has it, in UTF-8."""


class CachedPost(NamedTuple):
    """A post as everybody who may see it is served it."""

    author_id: int
    """Whose it is: who reads may follow or block them."""
    post: bytes
    """The post in the form in question."""


class PostCache:
    """The cached posts. Every method may raise Unavailable.

    What is read and put is in one form; what is withdrawn or forgotten is so in all.
    """

    def __init__(self, cache: Cache, form: Form = Form.PROTO) -> None:
        self._cache = cache
        self._form = form

    async def get(self, post_ids: Sequence[int]) -> dict[int, CachedPost | None]:
        """Returns what is known of the posts: None is a withdrawn one; who is absent, ask post."""
        values = await self._cache.get_many(_keys(self._form, post_ids))
        return {
            post_id: _decode(value)
            for post_id, value in zip(post_ids, values, strict=True)
            if value is not None and value != _MARKER
        }

    async def put(self, posts: Mapping[int, CachedPost | None]) -> None:
        """Keeps what post has just told, unless something is known of a post by now.

        Only for what was asked in the last two seconds, and is whole. None: nobody may be shown
        the post.
        """
        await self._cache.put_many(
            dict(zip(_keys(self._form, posts), map(_encode, posts.values()), strict=True)),
            seconds=_LIFE_SECONDS,
            only_new=True,
        )

    async def withdraw(self, post_ids: Iterable[int]) -> None:
        """Makes sure that nobody is given the posts, once this has returned.

        Call it after the change is committed. A post that may be shown again can have been in the
        meantime: look again afterwards, and if so, `forget` it.
        """
        await self._replace(post_ids, _TOMBSTONE, _WITHDRAWN_SECONDS)

    async def forget(self, post_ids: Iterable[int]) -> None:
        """Makes readers ask anew for posts that have changed, or are shown again.

        Call it after the change is committed.
        """
        await self._replace(post_ids, _MARKER, _SETTLE_SECONDS)

    async def _replace(self, post_ids: Iterable[int], value: bytes, seconds: int) -> None:
        every = list(post_ids)
        values = dict.fromkeys((key for form in Form for key in _keys(form, every)), value)
        await self._cache.put_many(values, seconds=seconds, only_new=False)


def _keys(form: Form, post_ids: Iterable[int]) -> list[str]:
    # Put together like this because an enumeration's own formatting is slow.
    prefix = form + ":{"
    return [f"{prefix}{post_id}}}" for post_id in post_ids]


def _encode(post: CachedPost | None) -> bytes:
    if post is None:
        return _TOMBSTONE
    return post.author_id.to_bytes(_AUTHOR_BYTES, "big") + post.post


def _decode(value: bytes) -> CachedPost | None:
    if value == _TOMBSTONE:
        return None
    return CachedPost(
        int.from_bytes(value[:_AUTHOR_BYTES], "big"),
        value[_AUTHOR_BYTES:],
    )
