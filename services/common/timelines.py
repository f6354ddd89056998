"""Home timelines in Valkey: what fanout pushes into and feed reads.

`feed:<account>` is a sorted set of post ids, the newest `CAP` of them. It exists only for
accounts that read their feed in the last 30 days. Three things make it trustworthy:

* It has no gaps: every post that belongs in the feed and is newer than its lowest member is a
  member. So a reader may go on from the database behind the lowest member with the same cursor.
* Its lowest member may be `_START` (score 0): then nothing older exists anywhere. It is the
  first to be evicted when the set is full.
* While it is rebuilt, its lowest member is a marker (score -1) that belongs to one rebuilder.
  Pushes land beside it, so that nothing posted meanwhile is lost; readers pass it by. Dropping
  the key takes the marker along, and the rebuilder's outdated result is refused.

Scores are `post_id >> 10`, milliseconds and shard: 53 bits, exact in a double, ordered like ids.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from redis.asyncio import Redis

from services.common.cache import told_as_unavailable

CAP = 500
"""How many entries a timeline keeps."""

_LIFE_SECONDS = 30 * 24 * 3600
"""After how long without a read a timeline goes."""

_REBUILD_SECONDS = 10
"""How long a rebuild may take; then another may begin."""

_START = b"0"
_MARKER = b"rebuild:"

# Trims after every single entry: a set that once exceeds 512 is never packed again.
_ADD = """
    local function add(key, score, member, cap)
        redis.call('ZADD', key, score, member)
        if redis.call('ZCARD', key) > cap then
            redis.call('ZPOPMIN', key)
        end
    end
"""

# KEYS: timelines. ARGV: cap, then post ids with their scores.
# A post below the lowest member would stand behind a gap, so it is left to the database.
_PUSH = f"""
    {_ADD}
    local cap = tonumber(ARGV[1])
    local reached = 0
    for _, key in ipairs(KEYS) do
        local lowest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
        if lowest[1] then
            local floor = tonumber(lowest[2])
            for i = 2, #ARGV, 2 do
                if tonumber(ARGV[i + 1]) >= floor then
                    add(key, ARGV[i + 1], ARGV[i], cap)
                end
            end
            reached = reached + 1
        end
    end
    return reached
"""

# KEYS: timeline. ARGV: highest score, count, seconds to live from now on.
# The life of a timeline that is being rebuilt is the rebuilder's, whoever reads it.
_READ = """
    local lowest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    if not lowest[1] or tonumber(lowest[2]) < 0 then
        return {lowest[1] or '', {}}
    end
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    return {
        lowest[1],
        redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '(0', 'LIMIT', 0, ARGV[2])
    }
"""

# KEYS: timeline. ARGV: marker, seconds.
_BEGIN = """
    if redis.call('EXISTS', KEYS[1]) == 1 then
        return 0
    end
    redis.call('ZADD', KEYS[1], -1, ARGV[1])
    redis.call('EXPIRE', KEYS[1], ARGV[2])
    return 1
"""

# KEYS: timeline. ARGV: marker, cap, seconds, then members with their scores.
_FINISH = f"""
    {_ADD}
    if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
        return 0
    end
    local cap = tonumber(ARGV[2])
    for i = 4, #ARGV, 2 do
        add(KEYS[1], ARGV[i + 1], ARGV[i], cap)
    end
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    return 1
"""


class Extent(Enum):
    """How far down a timeline reaches."""

    ABSENT = auto()
    """There is no timeline."""
    REBUILDING = auto()
    """Somebody is rebuilding it; what it holds says nothing."""
    PARTIAL = auto()
    """It holds the newest posts; older ones are in the database."""
    WHOLE = auto()
    """It holds everything that there is."""


@dataclass(frozen=True)
class Slice:
    """Part of a timeline."""

    post_ids: Sequence[int]
    """Newest first; fewer than asked for only where the timeline ends."""
    extent: Extent


def _key(account_id: int) -> str:
    return f"feed:{account_id}"


def _score(post_id: int) -> int:
    return post_id >> 10


def _entries(post_ids: Sequence[int]) -> list[int]:
    return [value for post_id in post_ids for value in (post_id, _score(post_id))]


class Timelines:
    """The home timelines. Every method may raise Unavailable."""

    def __init__(self, valkey: Redis) -> None:
        self._valkey = valkey
        self._push = valkey.register_script(_PUSH)
        self._read = valkey.register_script(_READ)
        self._begin = valkey.register_script(_BEGIN)
        self._finish = valkey.register_script(_FINISH)

    async def push(self, account_ids: Sequence[int], post_ids: Sequence[int]) -> int:
        """Adds posts to those of the timelines that exist; returns how many do.

        Each timeline is changed atomically, and an older post never evicts a newer one.
        """
        with told_as_unavailable():
            reached: int = await self._push(
                keys=[_key(account_id) for account_id in account_ids],
                args=[CAP, *_entries(post_ids)],
            )
        return reached

    async def read(self, account_id: int, before: int, count: int) -> Slice:
        """Returns up to `count` posts with ids below `before` (0: from the newest)."""
        # Others of the same shard and millisecond as the cursor share its score; hence the
        # margin, and another trip in the rare case that it was too small.
        margin = 4 if before else 0
        while True:
            with told_as_unavailable():
                lowest, members = await self._read(
                    keys=[_key(account_id)],
                    args=[_score(before) if before else "+inf", count + margin, _LIFE_SECONDS],
                )
            extent = _extent(lowest)
            post_ids = [int(member) for member in members]
            if before:
                post_ids = [post_id for post_id in post_ids if post_id < before]
            if len(post_ids) >= count or len(members) < count + margin:
                return Slice(post_ids[:count], extent)
            margin *= 4

    async def begin_rebuild(self, account_id: int) -> bytes | None:
        """Claims the rebuilding of a timeline that does not exist.

        Returns what `finish_rebuild` needs; None: the timeline exists, or somebody rebuilds it.
        Read the database only after this, so that nothing falls between.
        """
        marker = _MARKER + secrets.token_hex(8).encode()
        with told_as_unavailable():
            claimed = await self._begin(keys=[_key(account_id)], args=[marker, _REBUILD_SECONDS])
        return marker if claimed else None

    async def finish_rebuild(
        self, account_id: int, marker: bytes, post_ids: Sequence[int], *, whole: bool
    ) -> bool:
        """Fills a timeline; `whole`: there are no older posts than these.

        False: the timeline was dropped meanwhile, so what was read may be outdated.
        """
        entries: list[bytes | int] = [_START, 0] if whole else []
        entries += _entries(post_ids)
        with told_as_unavailable():
            finished = await self._finish(
                keys=[_key(account_id)],
                args=[marker, CAP, _LIFE_SECONDS, *entries],
            )
        return bool(finished)

    async def exists(self, account_id: int) -> bool:
        """Tells whether there is a timeline that posts can be pushed into."""
        with told_as_unavailable():
            return bool(await self._valkey.exists(_key(account_id)))

    async def drop(self, account_id: int) -> None:
        """Removes a timeline; the next read rebuilds it."""
        with told_as_unavailable():
            await self._valkey.unlink(_key(account_id))


def _extent(lowest: bytes) -> Extent:
    if not lowest:
        return Extent.ABSENT
    if lowest == _START:
        return Extent.WHOLE
    if lowest.startswith(_MARKER):
        return Extent.REBUILDING
    return Extent.PARTIAL
