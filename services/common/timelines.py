"""Timelines in Valkey: what fanout pushes into and feed reads.

A timeline is a list of post ids, newest first, the newest `CAP` of them or some more.
`feed:{<account>}` is a home timeline; it exists only for accounts that read their feed in the last
30 days. `author:{<account>}` holds one author's own posts; it exists only while somebody reads it,
which is how celebrities' posts reach their followers. Three things make them trustworthy:

* They have no gaps: every post that belongs in a timeline and is newer than its oldest member is
  a member. So a reader may go on from the database behind the oldest member with the same cursor.
* The last member may be `start`: then nothing older exists anywhere. It is the first to be
  trimmed when there is too much.
* While it is rebuilt, the last member is a marker that belongs to one rebuilder. Pushes land
  before it, so that nothing posted meanwhile is lost; readers pass it by. Dropping the key takes
  the marker along, and the rebuilder's outdated result is refused.

Why not a sorted set: nearly every post that is pushed is the newest, and belongs at the head of the
list. To look there and to put it there takes a third less time than in a sorted set that is packed,
where the server looks at each member; what comes out of order is put in its place by the scripts
here. An entry of a list takes 11.4 bytes, all counted, one of a packed sorted set 12.2, and one of
a skip list, in which ZADD is fast, 80: at 500 million feeds 2.7, 2.8 and 18 TiB (`make bench
BENCH=memory`).

A member is `2**63 - 1 - post_id`, 19 digits, upside down so that the newest is the least: as text,
which is how scripts compare members, and digits come before the letters that markers begin with.

Beside a home timeline lies `rules:{<account>}`, a hash: for some authors, what the timeline
alone does not say. `p`: their posts are pulled from their own timeline when the feed is read. `h`:
their posts are hidden, though some may still be in the list, or on their way into it: the account
ceased to follow them, or muted them. Its fields `v` and `s` are the versions of the account's
relations, as graph counts them, when an author was last hidden, and when one was last shown:
whoever read graph before the one may not show any author, and before the other may not hide any.
Such commands come late from caches that stalled, over networks that lost a packet.
List and hash count only together: should the cache evict one of them, the timeline is rebuilt.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from services.common.cache import Cache, Script

CAP = 500
"""How many entries a timeline keeps at least."""

_LONGEST = CAP + 20
"""With how many it is trimmed, which takes as long as a push."""

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

# What the scripts share. `oldest` returns the last member of a timeline; false: there is none.
# Numbers are written as texts where they can be, which the server need not make of them.
_LUA = f"""
    local call = redis.call
    local function name(kind, id)
        return kind .. ':{{' .. id .. '}}'
    end
    local function oldest(key)
        return call('LINDEX', key, '-1')
    end
    local function is_rebuilt(last)
        return string.byte(last) == {ord("r")}
    end
    local function all(key)
        return call('LRANGE', key, '0', '-1')
    end
"""

# How timelines grow. `merged` leaves out what of `added` would stand behind a gap. A rebuild that
# so much is pushed into that it would have to be trimmed is given up: what was trimmed would be
# missing beside what the rebuilder brings.
_GROWTH = f"""{_LUA}
    local function merged(held, added)
        local members, following = {{}}, 1
        for _, member in ipairs(held) do
            while added[following] and added[following] <= member do
                if added[following] < member then
                    members[#members + 1] = added[following]
                end
                following = following + 1
            end
            members[#members + 1] = member
        end
        return members
    end
    local function write(key, members, seconds)
        call('UNLINK', key)
        if members[1] then
            call('RPUSH', key, unpack(members, 1, math.min(#members, {_LONGEST})))
            call('EXPIRE', key, seconds)
        end
    end
    local function add(key, added)
        local held = all(key)
        local members = merged(held, added)
        if #members == #held then
            return
        end
        if #members > {_LONGEST} and is_rebuilt(members[#members]) then
            call('UNLINK', key)
        else
            write(key, members, math.max(call('TTL', key), 1))
        end
    end
    local function trim(key, count)
        if count > {_LONGEST} then
            if is_rebuilt(oldest(key)) then
                call('UNLINK', key)
            else
                call('LTRIM', key, '0', '{CAP - 1}')
            end
        end
    end
    local function put(key, newest, member)
        if member < newest then
            trim(key, call('LPUSH', key, member))
        elseif member > newest then
            for _, each in ipairs(call('LRANGE', key, '1', '4')) do
                if each == member then
                    return
                elseif each > member then
                    trim(key, call('LINSERT', key, 'BEFORE', each, member))
                    return
                end
            end
            add(key, {{member}})
        end
    end
    local function cut(key, bound)
        local kept = 0
        for _, member in ipairs(all(key)) do
            if member <= bound then
                kept = kept + 1
            end
        end
        if kept == 0 then
            call('UNLINK', key)
        else
            call('LTRIM', key, '0', kept - 1)
        end
    end
"""

# How they are read. `slice` returns up to `count` posts behind a member, or from the newest on.
# `renew` has a timeline live on; that it is a thirtieth of its life late saves most readers doing
# so.
_READING = f"""{_LUA}
    local function slice(key, behind, count)
        local first = 0
        if behind ~= '' then
            first = call('LPOS', key, behind)
            if first then
                first = first + 1
            else
                local members = all(key)
                first = #members
                while first > 0 and members[first] > behind do
                    first = first - 1
                end
            end
        end
        local members = call('LRANGE', key, first, first + count - 1)
        if members[1] and string.byte(members[#members]) > {ord("9")} then
            members[#members] = nil
        end
        return members
    end
    local function newer(key, bound)
        local members = {{}}
        for first = 0, {_LONGEST}, 32 do
            for _, member in ipairs(call('LRANGE', key, first, first + 31)) do
                if member >= bound then
                    return members
                end
                members[#members + 1] = member
            end
        end
        return members
    end
    local function renew(key, seconds)
        if call('TTL', key) < seconds * 29 / 30 then
            return call('EXPIRE', key, seconds)
        end
    end
"""

# ARGV: kind, member from which on the posts are all there are of their author (or empty), number of
# posts, their members with the newest first, then owners.
# When not all of an author's posts are brought, the timeline must end where they do.
_PUSH = Script(f"""{_GROWTH}
    local prefix, bound, behind_posts = ARGV[1] .. ':{{', ARGV[2], 4 + ARGV[3]
    local post, is_one, reached = ARGV[4], bound == '' and behind_posts == 5, 0
    local posts = {{unpack(ARGV, 4, behind_posts - 1)}}
    for i = behind_posts, #ARGV do
        local key = prefix .. ARGV[i] .. '}}'
        local newest = call('LINDEX', key, '0')
        if not newest then
            -- Nobody reads it.
        elseif is_one then
            put(key, newest, post)
            reached = reached + 1
        elseif bound ~= '' and is_rebuilt(oldest(key)) then
            call('UNLINK', key)
        else
            add(key, posts)
            if bound ~= '' then
                cut(key, bound)
            end
            reached = reached + 1
        end
    end
    return reached
""")

# ARGV: kind, number of posts, their members, then owners.
_RETRACT = Script(f"""{_LUA}
    local behind_posts = 3 + ARGV[2]
    for i = behind_posts, #ARGV do
        local key = name(ARGV[1], ARGV[i])
        for j = 3, behind_posts - 1 do
            call('LREM', key, '1', ARGV[j])
        end
    end
""")

# ARGV: owner, member to begin behind (or empty), count, seconds to live from now on.
# The life of a timeline that is being rebuilt is the rebuilder's, whoever reads it.
_READ = Script(f"""{_READING}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local last = oldest(feed)
    if not last or is_rebuilt(last) then
        return {{last or '', {{}}, {{}}}}
    end
    local ruled = call('HGETALL', rules)
    if not ruled[1] then
        call('UNLINK', feed)
        return {{'', {{}}, {{}}}}
    end
    if renew(feed, ARGV[4]) then
        call('EXPIRE', rules, ARGV[4])
    end
    return {{last, slice(feed, ARGV[2], ARGV[3]), ruled}}
""")

# ARGV: member to begin behind (or empty), count, seconds to live from now on, then authors.
_READ_AUTHORS = Script(f"""{_READING}
    local slices = {{}}
    for i = 4, #ARGV do
        local key = name('author', ARGV[i])
        local last = oldest(key)
        local members = {{}}
        if last and not is_rebuilt(last) then
            renew(key, ARGV[3])
            members = slice(key, ARGV[1], ARGV[2])
        end
        slices[#slices + 1] = {{ARGV[i], last or '', members}}
    end
    return slices
""")

# ARGV: kind, then owners. Three things for each: its id, its newest member, how many there are.
_SIGNATURES = Script(f"""{_LUA}
    local told = {{}}
    for i = 2, #ARGV do
        local key = name(ARGV[1], ARGV[i])
        local at = 3 * i - 5
        told[at] = ARGV[i]
        told[at + 1] = call('LINDEX', key, '0') or ''
        told[at + 2] = call('LLEN', key)
    end
    return told
""")

# ARGV: member to end before, then readers.
_READ_NEWER = Script(f"""{_READING}
    local slices = {{}}
    for i = 2, #ARGV do
        local feed = name('feed', ARGV[i])
        local last = oldest(feed)
        local members, ruled = {{}}, {{}}
        if last and not is_rebuilt(last) then
            ruled = call('HGETALL', name('rules', ARGV[i]))
            if ruled[1] then
                members = newer(feed, ARGV[1])
            else
                last = nil
            end
        end
        slices[#slices + 1] = {{ARGV[i], last or '', members, ruled}}
    end
    return slices
""")

# ARGV: kind, owner, marker, seconds. Rules without a timeline are of no use to anybody.
_BEGIN = Script(f"""{_LUA}
    local key = name(ARGV[1], ARGV[2])
    if call('EXISTS', key) == 1 then
        return 0
    end
    if ARGV[1] == 'feed' then
        call('UNLINK', name('rules', ARGV[2]))
    end
    call('RPUSH', key, ARGV[3])
    call('EXPIRE', key, ARGV[4])
    return 1
""")

# ARGV: kind, owner, marker, seconds, version, number of hidden authors, they, number of pulled
# ones, they, then members with the newest first. If somebody was hidden after graph was read, that
# has to be read again. What was pushed meanwhile and is older than all that was brought would stand
# behind a gap.
_FINISH = Script(f"""{_GROWTH}
    local key, rules = name(ARGV[1], ARGV[2]), name('rules', ARGV[2])
    if call('LREM', key, '-1', ARGV[3]) == 0 then
        return 0
    end
    local hidden = tonumber(ARGV[6])
    local pulled = tonumber(ARGV[7 + hidden])
    if ARGV[1] == 'feed' then
        if tonumber(call('HGET', rules, 'v') or 0) > tonumber(ARGV[5]) then
            call('UNLINK', key, rules)
            return 0
        end
        call('HSET', rules, 'v', ARGV[5], 's', ARGV[5])
        for i = 7, 6 + hidden do
            call('HSET', rules, ARGV[i], 'h')
        end
        for i = 8 + hidden, 7 + hidden + pulled do
            call('HSET', rules, ARGV[i], 'p')
        end
        call('EXPIRE', rules, ARGV[4])
    end
    local pushed, members = all(key), {{}}
    for i = 8 + hidden + pulled, #ARGV do
        members[#members + 1] = ARGV[i]
    end
    write(key, members[1] and merged(members, pushed) or pushed, ARGV[4])
    return 1
""")

# ARGV: kind, owner, marker. What was pushed meanwhile is of no use without the rest.
_ABANDON = Script(f"""{_LUA}
    local key = name(ARGV[1], ARGV[2])
    if call('LREM', key, '-1', ARGV[3]) == 1 then
        call('UNLINK', key)
    end
""")

# ARGV: reader, author, version, seconds. Returns 0: outdated. Without a timeline nothing is to be
# done: whoever builds one reads what holds now. To a rebuild it is told, but not for much longer.
_HIDE_AUTHOR = Script(f"""{_LUA}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local last = oldest(feed)
    if not last then
        return 1
    end
    local version = math.max(tonumber(call('HGET', rules, 'v') or 0), tonumber(ARGV[3]))
    if is_rebuilt(last) then
        call('HSET', rules, 'v', version)
        call('EXPIRE', rules, ARGV[4])
        return 1
    end
    local shown = tonumber(call('HGET', rules, 's') or -1)
    if shown < 0 then
        call('UNLINK', feed)
        return 1
    end
    if shown > tonumber(ARGV[3]) then
        return 0
    end
    call('HSET', rules, ARGV[2], 'h', 'v', version)
    return 1
""")

# ARGV: reader, author, version, rule (`p`, or empty: none). Returns 0: outdated.
# A rebuild that is under way is given up, for it may have read what held before.
_SHOW_AUTHOR = Script(f"""{_LUA}
    local feed, rules = name('feed', ARGV[1]), name('rules', ARGV[1])
    local last = oldest(feed)
    if not last then
        return 1
    end
    local version = tonumber(call('HGET', rules, 'v') or -1)
    if is_rebuilt(last) or version < 0 then
        call('UNLINK', feed)
        return 1
    end
    if version > tonumber(ARGV[3]) then
        return 0
    end
    local shown = tonumber(call('HGET', rules, 's') or 0)
    call('HSET', rules, 's', math.max(shown, tonumber(ARGV[3])))
    if ARGV[4] == '' then
        call('HDEL', rules, ARGV[2])
    else
        call('HSET', rules, ARGV[2], ARGV[4])
    end
    return 1
""")

# ARGV: author, 1: pull, 0: no longer, then readers. Who is hidden stays so.
_PULL_AUTHOR = Script(f"""{_LUA}
    for i = 3, #ARGV do
        local feed, rules = name('feed', ARGV[i]), name('rules', ARGV[i])
        local last = oldest(feed)
        if last and is_rebuilt(last) then
            call('UNLINK', feed)
        elseif last and call('EXISTS', rules) == 1 then
            if ARGV[2] == '1' then
                call('HSETNX', rules, ARGV[1], 'p')
            elseif call('HGET', rules, ARGV[1]) == 'p' then
                call('HDEL', rules, ARGV[1])
            end
        end
    end
""")

# ARGV: kind, owner.
_EXISTS = Script(f"""{_LUA}
    return call('EXISTS', name(ARGV[1], ARGV[2]))
""")

# ARGV: kind, owner.
_DROP = Script(f"""{_LUA}
    call('UNLINK', name(ARGV[1], ARGV[2]))
    if ARGV[1] == 'feed' then
        call('UNLINK', name('rules', ARGV[2]))
    end
""")


class Extent(Enum):
    """How far down a timeline reaches."""

    ABSENT = auto()
    """There is no timeline."""
    REBUILDING = auto()
    """Somebody is rebuilding it; what it holds says nothing."""
    PARTIAL = auto()
    """It holds the newest posts; older ones are in the database. Or what was asked for did not
    reach down to where it ends."""
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
        bound = _member(complete_from) if complete_from else ""
        reached: list[int] = await self._cache.run_on_owners(
            _PUSH, owner_ids, [self._kind, bound, len(newest_first), *map(_member, newest_first)]
        )
        return sum(reached)

    async def retract(self, owner_ids: Sequence[int], post_ids: Sequence[int]) -> None:
        """Takes posts out of timelines; those that do not have them stay as they are."""
        members = [_member(post_id) for post_id in post_ids]
        await self._cache.run_on_owners(_RETRACT, owner_ids, [self._kind, len(members), *members])

    async def signatures(self, owner_ids: Sequence[int]) -> Mapping[int, Signature | None]:
        """Returns what changes when a timeline does; None: there is none.

        Cheap, so that thousands can be looked at every moment, and nearly sure: a post that is
        added while another one is retracted, and is not the newest, does not show.
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
            *map(_member, sorted(set(post_ids), reverse=True)),
            *((_START,) if whole else ()),
        ]
        return bool(await self._cache.run(_FINISH, owner_id, args))


class HomeTimelines(_Timelines):
    """The home timelines, by reader. Every method may raise Unavailable."""

    _kind = "feed"
    _life_seconds = _LIFE_SECONDS

    async def read(self, reader_id: int, before: int, count: int) -> HomeSlice:
        """Returns up to `count` posts with ids below `before` (0: from the newest)."""
        args: list[bytes | str | int] = [reader_id, _behind(before), count, self._life_seconds]
        oldest, members, rules = await self._cache.run(_READ, reader_id, args)
        return _home_slice(oldest, members, rules)

    async def newer(self, reader_ids: Sequence[int], after: int) -> Mapping[int, HomeSlice]:
        """Returns each reader's posts with ids above `after`.

        To look does not make a timeline live longer.
        """
        nodes = await self._cache.run_on_owners(_READ_NEWER, reader_ids, [_member(after)])
        return {
            int(reader_id): _home_slice(oldest, members, rules)
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
        False: the timeline was dropped, or somebody hidden, meanwhile: what was read may be
        outdated.
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

    async def hide(self, reader_id: int, author_id: int, version: int) -> bool:
        """Hides an author's posts from a reader, given relations read at `version`.

        False: the reader was shown somebody after that. Ask graph again.
        """
        args = [reader_id, author_id, version, 2 * _REBUILD_SECONDS]
        return bool(await self._cache.run(_HIDE_AUTHOR, reader_id, args))

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
        args: list[bytes | str | int] = [_behind(before), count, self._life_seconds]
        nodes = await self._cache.run_on_owners(_READ_AUTHORS, author_ids, args)
        return {
            int(author_id): Slice(_post_ids(members), _extent(oldest))
            for node in nodes
            for author_id, oldest, members in node
        }

    async def finish_rebuild(
        self, author_id: int, marker: bytes, post_ids: Sequence[int], *, whole: bool
    ) -> bool:
        """Fills a timeline; `whole`: there are no older posts than these.

        False: the timeline was dropped meanwhile, so what was read may be outdated.
        """
        return await self._finish(author_id, marker, post_ids, whole=whole)


def _member(post_id: int) -> str:
    return f"{_LARGEST_ID - post_id:019}"


def _behind(before: int) -> str:
    return _member(before) if before else ""


def _post_ids(members: Sequence[bytes]) -> list[int]:
    return [_LARGEST_ID - int(member) for member in members]


def _home_slice(oldest: bytes, members: Sequence[bytes], rules: Sequence[bytes]) -> HomeSlice:
    by_author = dict(zip(rules[::2], rules[1::2], strict=True))
    return HomeSlice(
        _post_ids(members),
        _extent(oldest),
        pulled=_ruled(by_author, _PULL),
        hidden=frozenset(_ruled(by_author, _HIDE)),
    )


def _ruled(by_author: Mapping[bytes, bytes], rule: bytes) -> list[int]:
    return [int(author) for author, its in by_author.items() if its == rule]


def _extent(oldest: bytes) -> Extent:
    if not oldest:
        return Extent.ABSENT
    if oldest == _START:
        return Extent.WHOLE
    if oldest.startswith(_MARKER):
        return Extent.REBUILDING
    return Extent.PARTIAL
