"""Hydrated posts in Valkey: `post:<id>` holds a serialised photomesh.post.v1.Post."""

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from services.common.cache import told_as_unavailable

_LIFE_SECONDS = 3600
"""An hour: the media URLs inside are good for at least twice that, see services/common/cdn.py."""


def _key(post_id: int) -> str:
    return f"post:{post_id}"


class PostCache:
    """Posts as they are served. Every method may raise Unavailable."""

    def __init__(self, valkey: Redis) -> None:
        self._valkey = valkey

    async def get(self, post_ids: Sequence[int]) -> dict[int, bytes]:
        """Returns those of the posts that are cached."""
        with told_as_unavailable():
            values = await self._valkey.mget([_key(post_id) for post_id in post_ids])
        return {
            post_id: value
            for post_id, value in zip(post_ids, values, strict=True)
            if isinstance(value, bytes)
        }

    async def put(self, posts: Mapping[int, bytes]) -> None:
        """Caches posts."""
        with told_as_unavailable():
            pipeline = self._valkey.pipeline(transaction=False)
            for post_id, value in posts.items():
                pipeline.set(_key(post_id), value, ex=_LIFE_SECONDS)
            await pipeline.execute()
