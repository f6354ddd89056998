"""Timelines in Valkey: what fanout pushes into and feed reads.

A timeline is a sorted set of post ids, the newest `CAP` of them (up to `_SLACK` more, so that not
every push trims). `feed:{<account>}` is a home timeline; it exists only for accounts that read
their feed in the last 30 days. `author:{<account>}` holds one author's own posts; it exists only
while somebody reads it, which is how celebrities' posts reach their followers. Three things make
them trustworthy:

* They have no gaps: every post that belongs in a timeline and is newer than its oldest member is
  a member. So a reader may go on from the database behind the oldest member with the same cursor.
* The oldest member may be `_START` (score 0): then nothing older exists anywhere. It is the
  first to be trimmed when the set is full.
* While it is rebuilt, the oldest member is a marker (score 1) that belongs to one rebuilder.
  Pushes land beside it, so that nothing posted meanwhile is lost; readers pass it by. Dropping
  the key takes the marker along, and the rebuilder's outdated result is refused.

A post's score is `-(post_id >> 10)`, its milliseconds and shard: 53 bits, exact in a double. Its
member is `2**63 - 1 - post_id`, so that equal scores sort by id, too. Both are upside down because
a packed set is searched from its head: the newest post goes there, at once.

Beside a home timeline lies `rules:{<account>}`, a hash: for some authors, what the timeline
alone does not say. `p`: their posts are pulled from their own timeline when the feed is read. `h`:
their posts are hidden, though some may still be in the set, or be on their way into it: the account
ceased to follow them, or muted them. Its field `v` is the version of the account's relations, as
graph counts them, when an author was last hidden: whoever read graph before that may not show any.
Set and hash count only together: should the cache evict one of them, the timeline is rebuilt.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from services.common.cache import Cache, Script

CAP = 500
"""How many entries a timeline keeps at least."""

_SLACK = 11
"""How many more it may have before it is trimmed: with them it is still below the 512 entries up
to which the server keeps a set packed."""

_LIFE_SECONDS = 30 * 24 * 3600
"""After how long without a read a home timeline goes."""

_AUTHOR_LIFE_SECONDS = 24 * 3600
"""After how long without a read an author's timeline goes."""

_REBUILD_SECONDS = 10
"""How long a rebuild may take; then another may begin."""

Signature = tuple[bytes, int]
"""Tells one state of a timeline from others."""

_LARGEST_ID = (1 << 63) - 1
_START = b"start"
_MARKER = b"rebuild:"
_PULL = b"p"
_HIDE = b"h"
_VERSION = b"v"

# What the scripts share. `oldest` tells a timeline's last member and its score; nothing: there is
# no timeline. `add` trims after every single entry, so that the set never outgrows being packed.
# A rebuild that so much is pushed into that it had to be trimmed is given up: what was trimmed
# would be missing beside what the rebuilder brings.
_LUA = f"""
    local function name(kind, id)
        return kind .. ':{{' .. id .. '}}'
    end
    local function oldest(key)
        local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
        return last[1], tonumber(last[2])
    end
    local function add(key, score, member, rebuilding)
        redis.call('ZADD', key, score, member)
        if redis.call('ZCARD', key) >= {CAP + _SLACK} then
            if rebuilding then
                redis.call('UNLINK', key)
                return false
            end
            redis.call('ZREMRANGEBYRANK', key, {CAP}, -1)
        end
        return true
    end
"""

# ARGV: kind, score from which on the posts are all there are of their author (or empty), number of
# posts, their scores and members with the newest first, then owners.
# A post below the oldest member would stand behind a gap, so it is left to the database. When not
# all of an author's posts are brought, the timeline must end where they do.
_PUSH = Script(f"""{_LUA}
    local kind, bound = ARGV[1], ARGV[2]
    local last = 3 + 2 * ARGV[3]
    local reached = 0
    for i = last + 1, #ARGV do
        local key = name(kind, ARGV[i])
        local member, floor = oldest(key)
        if member and bound ~= '' and floor == 1 then
            redis.call('UNLINK', key)
        elseif member then
            local alive = true
            for j = 4, last, 2 do
                if alive and tonumber(ARGV[j]) <= floor then
                    alive = add(key, ARGV[j], ARGV[j + 1], floor == 1)
                end
                if j == 4 and bound ~= '' then
                    redis.call('ZREMRANGEBYSCORE', key, '(' .. bound, '+inf')
                end
            end
            reached = reached + 1
        end
    end
    return reached
""")

# ARGV: kind, number of posts, their members, then owners.
_RETRACT = Script(f"""{_LUA}
    local last = 2 + ARGV[2]
    for i = last + 1, #ARGV do
        redis.call('ZREM', name(ARGV[1], ARGV[i]), unpack(ARGV, 3, last))
    end
""")

# ARGV: owner, score to begin with, count, seconds to live from now on.
# The life of a timeline that is being rebuilt is the rebuilder's, whoever reads it.
_READ = Script(f"""{_LUA}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local member, floor = oldest(feed)
    if not member or floor == 1 then
        return {{member or '', {{}}, {{}}}}
    end
    local ruled = redis.call('HGETALL', rules)
    if not ruled[1] then
        redis.call('UNLINK', feed)
        return {{'', {{}}, {{}}}}
    end
    redis.call('EXPIRE', feed, ARGV[4])
    redis.call('EXPIRE', rules, ARGV[4])
    return {{
        member,
        redis.call('ZRANGEBYSCORE', feed, ARGV[2], '(0', 'LIMIT', 0, ARGV[3]),
        ruled
    }}
""")

# ARGV: score to begin with, count, seconds to live from now on, then authors.
_READ_AUTHORS = Script(f"""{_LUA}
    local slices = {{}}
    for i = 4, #ARGV do
        local key = name('author', ARGV[i])
        local member, floor = oldest(key)
        local members = {{}}
        if member and floor ~= 1 then
            redis.call('EXPIRE', key, ARGV[3])
            members = redis.call('ZRANGEBYSCORE', key, ARGV[1], '(0', 'LIMIT', 0, ARGV[2])
        end
        slices[#slices + 1] = {{ARGV[i], member or '', members}}
    end
    return slices
""")

# ARGV: kind, then owners. Three things for each: its id, its newest member, how many it has.
_SIGNATURES = Script(f"""{_LUA}
    local call, told = redis.call, {{}}
    for i = 2, #ARGV do
        local key = name(ARGV[1], ARGV[i])
        local at = 3 * i - 5
        told[at] = ARGV[i]
        told[at + 1] = call('ZRANGE', key, 0, 0)[1] or ''
        told[at + 2] = call('ZCARD', key)
    end
    return told
""")

# ARGV: score to end with, then readers.
_READ_NEWER = Script(f"""{_LUA}
    local slices = {{}}
    for i = 2, #ARGV do
        local feed = name('feed', ARGV[i])
        local member, floor = oldest(feed)
        local members, ruled = {{}}, {{}}
        if member and floor ~= 1 then
            ruled = redis.call('HGETALL', name('rules', ARGV[i]))
            if ruled[1] then
                members = redis.call('ZRANGEBYSCORE', feed, '-inf', ARGV[1])
            else
                member = false
            end
        end
        slices[#slices + 1] = {{ARGV[i], member or '', members, ruled}}
    end
    return slices
""")

# ARGV: kind, owner, marker, seconds. Rules without a timeline are of no use to anybody.
_BEGIN = Script(f"""{_LUA}
    local key = name(ARGV[1], ARGV[2])
    if redis.call('EXISTS', key) == 1 then
        return 0
    end
    if ARGV[1] == 'feed' then
        redis.call('UNLINK', name('rules', ARGV[2]))
    end
    redis.call('ZADD', key, 1, ARGV[3])
    redis.call('EXPIRE', key, ARGV[4])
    return 1
""")

# ARGV: kind, owner, marker, seconds, version, number of hidden authors, they, number of pulled
# ones, they, then scores and members. Who was hidden meanwhile stays so.
_FINISH = Script(f"""{_LUA}
    local key = name(ARGV[1], ARGV[2])
    if redis.call('ZREM', key, ARGV[3]) == 0 then
        return 0
    end
    local hidden = tonumber(ARGV[6])
    local pulled = tonumber(ARGV[7 + hidden])
    for i = 8 + hidden + pulled, #ARGV, 2 do
        add(key, ARGV[i], ARGV[i + 1], false)
    end
    redis.call('EXPIRE', key, ARGV[4])
    if ARGV[1] == 'feed' then
        local rules = name('rules', ARGV[2])
        for i = 7, 6 + hidden do
            redis.call('HSET', rules, ARGV[i], 'h')
        end
        for i = 8 + hidden, 7 + hidden + pulled do
            redis.call('HSETNX', rules, ARGV[i], 'p')
        end
        local version = tonumber(redis.call('HGET', rules, 'v') or 0)
        redis.call('HSET', rules, 'v', math.max(version, tonumber(ARGV[5])))
        redis.call('EXPIRE', rules, ARGV[4])
    end
    return 1
""")

# ARGV: kind, owner, marker. What was pushed meanwhile is of no use without the rest.
_ABANDON = Script(f"""{_LUA}
    local key = name(ARGV[1], ARGV[2])
    if redis.call('ZSCORE', key, ARGV[3]) then
        redis.call('UNLINK', key)
    end
""")

# ARGV: reader, author, version, seconds. Without a timeline there is nothing to do: whoever builds
# one reads what holds now. During a rebuild the rule waits for its end, but not for much longer.
_HIDE_AUTHOR = Script(f"""{_LUA}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local member, floor = oldest(feed)
    if not member then
        return
    end
    if floor ~= 1 and redis.call('EXISTS', rules) == 0 then
        redis.call('UNLINK', feed)
        return
    end
    local version = tonumber(redis.call('HGET', rules, 'v') or 0)
    redis.call('HSET', rules, ARGV[2], 'h', 'v', math.max(version, tonumber(ARGV[3])))
    if floor == 1 then
        redis.call('EXPIRE', rules, ARGV[4])
    end
""")

# ARGV: reader, author, version, rule (`p`, or empty: none). Returns 0: outdated.
# A rebuild that is under way is given up, for it may have read what held before.
_SHOW_AUTHOR = Script(f"""{_LUA}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local member, floor = oldest(feed)
    if not member then
        return 1
    end
    local version = tonumber(redis.call('HGET', rules, 'v') or -1)
    if floor == 1 or version < 0 then
        redis.call('UNLINK', feed)
        return 1
    end
    if version > tonumber(ARGV[3]) then
        return 0
    end
    if ARGV[4] == '' then
        redis.call('HDEL', rules, ARGV[2])
    else
        redis.call('HSET', rules, ARGV[2], ARGV[4])
    end
    return 1
""")

# ARGV: author, 1: pull, 0: no longer, then readers. Who is hidden stays so.
_PULL_AUTHOR = Script(f"""{_LUA}
    for i = 3, #ARGV do
        local feed, rules = name('feed', ARGV[i]), name('rules', ARGV[i])
        local member, floor = oldest(feed)
        if floor == 1 then
            redis.call('UNLINK', feed)
        elseif member and redis.call('EXISTS', rules) == 1 then
            if ARGV[2] == '1' then
                redis.call('HSETNX', rules, ARGV[1], 'p')
            elseif redis.call('HGET', rules, ARGV[1]) == 'p' then
                redis.call('HDEL', rules, ARGV[1])
            end
        end
    end
""")

# ARGV: kind, owner.
_EXISTS = Script(f"""{_LUA}
    return redis.call('EXISTS', name(ARGV[1], ARGV[2]))
""")

# ARGV: kind, owner.
_DROP = Script(f"""{_LUA}
    redis.call('UNLINK', name(ARGV[1], ARGV[2]))
    if ARGV[1] == 'feed' then
        redis.call('UNLINK', name('rules', ARGV[2]))
    end
""")


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


@dataclass(frozen=True)
class HomeSlice(Slice):
    """Part of a home timeline, and what goes for all of it."""

    pulled: Sequence[int] = ()
    """Authors whose own timelines belong into the feed, too."""
    hidden: frozenset[int] = frozenset()
    """Authors whose posts do not, though they may be here."""


class _Timelines:
    """What home and author timelines have in common. Every method may raise Unavailable."""

    _kind: str
    _life_seconds: int

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def push(
        self, owner_ids: Sequence[int], post_ids: Sequence[int], *, complete_from: int = 0
    ) -> int:
        """Adds posts to those of the timelines that exist; returns how many do.

        Each timeline is changed atomically, and an older post never evicts a newer one. With
        `complete_from`, the posts are all of their author's from this id on, and there may be
        older ones: what the timelines hold below it is left to the database from now on.
        """
        if not owner_ids or not post_ids:
            return 0
        newest_first = sorted(post_ids, reverse=True)
        bound = _score(complete_from) if complete_from else ""
        reached: list[int] = await self._cache.run_on_owners(
            _PUSH, owner_ids, [self._kind, bound, len(newest_first), *_entries(newest_first)]
        )
        return sum(reached)

    async def retract(self, owner_ids: Sequence[int], post_ids: Sequence[int]) -> None:
        """Takes posts out of timelines; those that do not have them stay as they are."""
        members = [_member(post_id) for post_id in post_ids]
        await self._cache.run_on_owners(_RETRACT, owner_ids, [self._kind, len(members), *members])

    async def signatures(self, owner_ids: Sequence[int]) -> Mapping[int, Signature | None]:
        """Returns what changes when a timeline does; None: there is none.

        Cheap, so that thousands can be looked at every moment, and nearly sure: only a post that
        is added while another one is retracted, and is not the newest, may not show.
        """
        nodes = await self._cache.run_on_owners(_SIGNATURES, owner_ids, [self._kind])
        return {
            int(owner_id): (newest, count) if count else None
            for told in nodes
            for owner_id, newest, count in zip(told[::3], told[1::3], told[2::3], strict=True)
        }

    async def begin_rebuild(self, owner_id: int) -> bytes | None:
        """Claims the rebuilding of a timeline that does not exist.

        Returns what finishes it; None: the timeline exists, or somebody rebuilds it. Read the
        database only after this, so that nothing falls between.
        """
        marker = _MARKER + secrets.token_hex(8).encode()
        args: list[bytes | str | int] = [self._kind, owner_id, marker, _REBUILD_SECONDS]
        return marker if await self._cache.run(_BEGIN, owner_id, args) else None

    async def abandon_rebuild(self, owner_id: int, marker: bytes) -> None:
        """Lets somebody else begin a rebuild that this one's beginner cannot finish."""
        await self._cache.run(_ABANDON, owner_id, [self._kind, owner_id, marker])

    async def exists(self, owner_id: int) -> bool:
        """Tells whether there is a timeline that posts can be pushed into."""
        return bool(await self._cache.run(_EXISTS, owner_id, [self._kind, owner_id]))

    async def drop(self, owner_id: int) -> None:
        """Removes a timeline; the next read rebuilds it."""
        await self._cache.run(_DROP, owner_id, [self._kind, owner_id])

    async def _finish(
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
        args: list[bytes | str | int] = [
            *(self._kind, owner_id, marker, self._life_seconds, version),
            *(len(hidden), *hidden),
            *(len(pulled), *pulled),
            *((0, _START) if whole else ()),
            *_entries(post_ids),
        ]
        return bool(await self._cache.run(_FINISH, owner_id, args))


class HomeTimelines(_Timelines):
    """The home timelines, by reader. Every method may raise Unavailable."""

    _kind = "feed"
    _life_seconds = _LIFE_SECONDS

    async def read(self, reader_id: int, before: int, count: int) -> HomeSlice:
        """Returns up to `count` posts with ids below `before` (0: from the newest)."""
        margin = _margin(before)
        while True:
            args = [reader_id, _first_score(before), count + margin, self._life_seconds]
            oldest, members, rules = await self._cache.run(_READ, reader_id, args)
            post_ids = _below(before, members)
            if len(post_ids) >= count or len(members) < count + margin:
                return _home_slice(oldest, post_ids[:count], rules)
            margin *= 4

    async def newer(self, reader_ids: Sequence[int], after: int) -> Mapping[int, HomeSlice]:
        """Returns each reader's posts with ids above `after`, which must be 1024 or more.

        To look does not make a timeline live longer.
        """
        nodes = await self._cache.run_on_owners(_READ_NEWER, reader_ids, [_score(after)])
        return {
            int(reader_id): _home_slice(
                oldest, [each for each in _below(0, members) if each > after], rules
            )
            for node in nodes
            for reader_id, oldest, members, rules in node
        }

    async def finish_rebuild(
        self,
        reader_id: int,
        marker: bytes,
        post_ids: Sequence[int],
        *,
        whole: bool,
        version: int,
        pulled: Sequence[int] = (),
        hidden: Sequence[int] = (),
    ) -> bool:
        """Fills a timeline; `whole`: there are no older posts than these.

        `version`, `pulled` and `hidden` are the reader's relations as graph told them.
        False: the timeline was dropped meanwhile, so what was read may be outdated.
        """
        return await self._finish(
            reader_id,
            marker,
            post_ids,
            whole=whole,
            version=version,
            hidden=hidden,
            pulled=pulled,
        )

    async def hide(self, reader_id: int, author_id: int, version: int) -> None:
        """Hides an author's posts from a reader, whose relations are at `version` now."""
        args = [reader_id, author_id, version, 2 * _REBUILD_SECONDS]
        await self._cache.run(_HIDE_AUTHOR, reader_id, args)

    async def show(self, reader_id: int, author_id: int, version: int) -> bool:
        """Makes an author neither hidden nor pulled, given relations read at `version`.

        False: the reader hid somebody after that. Ask graph again.
        """
        return await self._show(reader_id, author_id, version, b"")

    async def pull(self, reader_id: int, author_id: int, version: int) -> bool:
        """Makes an author's timeline be pulled, given relations read at `version`.

        False: the reader hid somebody after that. Ask graph again.
        """
        return await self._show(reader_id, author_id, version, _PULL)

    async def _show(self, reader_id: int, author_id: int, version: int, rule: bytes) -> bool:
        args: list[bytes | str | int] = [reader_id, author_id, version, rule]
        return bool(await self._cache.run(_SHOW_AUTHOR, reader_id, args))

    async def pull_all(self, reader_ids: Sequence[int], author_id: int) -> None:
        """Makes an author's timeline be pulled by all of the readers who do not hide it."""
        await self._cache.run_on_owners(_PULL_AUTHOR, reader_ids, [author_id, 1])

    async def unpull_all(self, reader_ids: Sequence[int], author_id: int) -> None:
        """Makes an author's timeline be pulled no longer by any of the readers."""
        await self._cache.run_on_owners(_PULL_AUTHOR, reader_ids, [author_id, 0])


class AuthorTimelines(_Timelines):
    """The timelines of authors' own posts. Every method may raise Unavailable."""

    _kind = "author"
    _life_seconds = _AUTHOR_LIFE_SECONDS

    async def read(self, author_ids: Sequence[int], before: int, count: int) -> Mapping[int, Slice]:
        """Returns up to `count` posts of each author with ids below `before` (0: the newest)."""
        margin = _margin(before)
        found: dict[int, Slice] = {}
        while wanted := [author_id for author_id in author_ids if author_id not in found]:
            args = [_first_score(before), count + margin, self._life_seconds]
            nodes = await self._cache.run_on_owners(_READ_AUTHORS, wanted, args)
            for author_id, oldest, members in (each for node in nodes for each in node):
                post_ids = _below(before, members)
                if len(post_ids) >= count or len(members) < count + margin:
                    found[int(author_id)] = Slice(post_ids[:count], _extent(oldest))
            margin *= 4
        return found

    async def finish_rebuild(
        self, author_id: int, marker: bytes, post_ids: Sequence[int], *, whole: bool
    ) -> bool:
        """Fills a timeline; `whole`: there are no older posts than these.

        False: the timeline was dropped meanwhile, so what was read may be outdated.
        """
        return await self._finish(author_id, marker, post_ids, whole=whole)


def _score(post_id: int) -> int:
    return -(post_id >> 10)


def _member(post_id: int) -> int:
    return _LARGEST_ID - post_id


def _entries(post_ids: Sequence[int]) -> list[int]:
    return [value for post_id in post_ids for value in (_score(post_id), _member(post_id))]


def _margin(before: int) -> int:
    """Returns how many entries to read beyond those wanted.

    Others of the same shard and millisecond as the cursor share its score. In the rare case that
    there are more of them, another trip is made.
    """
    return 4 if before else 0


def _first_score(before: int) -> int | str:
    return _score(before) if before else "-inf"


def _below(before: int, members: Sequence[bytes]) -> list[int]:
    post_ids = [_LARGEST_ID - int(member) for member in members]
    return [post_id for post_id in post_ids if post_id < before] if before else post_ids


def _home_slice(oldest: bytes, post_ids: Sequence[int], rules: Sequence[bytes]) -> HomeSlice:
    by_author = dict(zip(rules[::2], rules[1::2], strict=True))
    return HomeSlice(
        post_ids,
        _extent(oldest),
        pulled=_ruled(by_author, _PULL),
        hidden=frozenset(_ruled(by_author, _HIDE)),
    )


def _ruled(by_author: Mapping[bytes, bytes], rule: bytes) -> list[int]:
    return [int(author) for author, its in by_author.items() if its == rule and author != _VERSION]


def _extent(oldest: bytes) -> Extent:
    if not oldest:
        return Extent.ABSENT
    if oldest == _START:
        return Extent.WHOLE
    if oldest.startswith(_MARKER):
        return Extent.REBUILDING
    return Extent.PARTIAL
