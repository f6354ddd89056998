"""The operations that home and author timelines share."""

import secrets
from collections.abc import Mapping, Sequence

from services.chassis.cache.client import Cache
from services.domain.timelines.layout import MARKER, START, member_of, script

REBUILD_SECONDS = 10
"""How long a rebuild can take. After that, another one can begin."""

Signature = tuple[bytes, int]
"""Identifies a state of a timeline: the newest member and the length."""

_PUSH = script("push")
_RETRACT = script("retract")
_SIGNATURES = script("signatures")
_BEGIN_REBUILD = script("begin_rebuild")
_FINISH_REBUILD = script("finish_rebuild")
_ABANDON_REBUILD = script("abandon_rebuild")
_EXISTS = script("exists")
_DROP = script("drop")


class Timelines:
    """The timelines in one key space. Every method may raise Unavailable."""

    _space: str
    _ttl_seconds: int

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def push(
        self, owner_ids: Sequence[int], post_ids: Sequence[int], *, complete_from: int = 0
    ) -> int:
        """Adds posts to all of the timelines that exist; returns how many exist.

        Changes each timeline atomically. An older post never evicts a newer one.

        Args:
            owner_ids: the owners of the timelines.
            post_ids: the posts to add.
            complete_from: if not 0, the posts are all posts of their author from this id on, and
                older ones can exist. Then all members below this id are removed, and readers fetch
                older posts from the database.
        """
        if not owner_ids or not post_ids:
            return 0
        reached: list[int] = await self._cache.run_on_owners(
            _PUSH,
            owner_ids,
            space=self._space,
            bound=member_of(complete_from) if complete_from else "",
            posts=[member_of(post_id) for post_id in sorted(post_ids, reverse=True)],
        )
        return sum(reached)

    async def retract(self, owner_ids: Sequence[int], post_ids: Sequence[int]) -> None:
        """Removes posts from the timelines that contain them."""
        await self._cache.run_on_owners(
            _RETRACT,
            owner_ids,
            space=self._space,
            posts=[member_of(post_id) for post_id in post_ids],
        )

    async def signatures(self, owner_ids: Sequence[int]) -> Mapping[int, Signature | None]:
        """Returns a value per timeline that changes with the timeline; None: there is no timeline.

        Cheap enough to poll thousands of timelines. It does not change if, between two polls, one
        post other than the newest is added and another one is removed.
        """
        replies = await self._cache.run_on_owners(_SIGNATURES, owner_ids, space=self._space)
        return {
            int(owner_id): (newest, length) if length else None
            for values in replies
            for owner_id, newest, length in zip(
                values[::3], values[1::3], values[2::3], strict=True
            )
        }

    async def begin_rebuild(self, owner_id: int) -> bytes | None:
        """Claims the rebuild of a timeline that does not exist.

        Returns the marker to finish the rebuild with; None: the timeline exists, or a rebuild is in
        progress. Read the database only after this call: otherwise, posts published in between are
        lost.
        """
        marker = MARKER + secrets.token_hex(8).encode()
        is_claimed = await self._cache.run(
            _BEGIN_REBUILD, owner_id, space=self._space, marker=marker, seconds=REBUILD_SECONDS
        )
        return marker if is_claimed else None

    async def abandon_rebuild(self, owner_id: int, marker: bytes) -> None:
        """Releases the claim on a rebuild that failed, so that another one can begin."""
        await self._cache.run(_ABANDON_REBUILD, owner_id, space=self._space, marker=marker)

    async def exists(self, owner_id: int) -> bool:
        """Reports whether a timeline exists. A rebuild of it can be in progress."""
        return bool(await self._cache.run(_EXISTS, owner_id, space=self._space))

    async def drop(self, owner_id: int) -> None:
        """Removes a timeline; the next read rebuilds it."""
        await self._cache.run(_DROP, owner_id, space=self._space)

    async def _finish_rebuild(
        self,
        owner_id: int,
        marker: bytes,
        post_ids: Sequence[int],
        *,
        whole: bool,
        version: int = 0,
        hidden: Sequence[int] = (),
        pulled: Sequence[int] = (),
    ) -> bool:
        members = [member_of(post_id) for post_id in sorted(set(post_ids), reverse=True)]
        return bool(
            await self._cache.run(
                _FINISH_REBUILD,
                owner_id,
                space=self._space,
                marker=marker,
                seconds=self._ttl_seconds,
                version=version,
                hidden=hidden,
                pulled=pulled,
                members=[*members, START] if whole else members,
            )
        )
