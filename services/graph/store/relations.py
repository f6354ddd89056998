"""Relations between accounts: follows, requests, blocks, mutes.

A change to what a reader receives from an author, or to their relation, first locks the reader's
row in followee_counts. So changes of one reader are serialized, and data read under the lock stays
valid until the commit. Locks are taken in this order, which prevents deadlocks:

1. rows of followee_counts; a block, which changes both accounts as readers, locks the lower id
   first;
2. rows that only the locked readers change: follows, followers, requests, blocks, mutes,
   departures;
3. slots of follower_counts, the only rows that readers share; a block that removes follows in both
   directions locks the slot of the lower followee first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from photomesh.graph.v1.events_pb2 import FollowChanged
from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row

from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database, fetch, int_array
from services.chassis.events.outbox import Outbox, Transaction
from services.domain.errors import AccountUnknown
from services.graph.errors import FollowLimit, FollowRequestUnknown, MuteLimit
from services.graph.store.audiences import Mode, of_account

# -- Locks and counts of readers ---------------------------------------------------------------

_LOCK_READER = """
    SELECT followees + requested
      FROM followee_counts
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
       FOR UPDATE
"""

_ADD_READER = """
    INSERT INTO followee_counts (shard, follower_id, followees)
    VALUES (%(follower_shard)s, %(follower_id)s, 0)
    ON CONFLICT DO NOTHING
"""

_COUNT_FOLLOWEE = """
    UPDATE followee_counts SET followees = followees + %(delta)s
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
"""

_COUNT_REQUESTED = """
    UPDATE followee_counts SET requested = requested + %(delta)s
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
"""

_NEXT_VERSION = """
    UPDATE followee_counts SET version = version + 1
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
"""

# -- Follows -----------------------------------------------------------------------------------

_ADD_FOLLOW = """
    INSERT INTO follows (shard, follower_id, followee_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
"""

_ADD_FOLLOWER = """
    INSERT INTO followers (shard, followee_id, follower_id)
    VALUES (%(followee_shard)s, %(followee_id)s, %(follower_id)s)
"""

_REMOVE_FOLLOW = """
    DELETE FROM follows
     WHERE shard = %(follower_shard)s
       AND follower_id = %(follower_id)s AND followee_id = %(followee_id)s
"""

_REMOVE_FOLLOWER = """
    DELETE FROM followers
     WHERE shard = %(followee_shard)s
       AND followee_id = %(followee_id)s AND follower_id = %(follower_id)s
"""

_COUNT_FOLLOWER = """
    INSERT INTO follower_counts AS counted (shard, followee_id, slot, followers)
    VALUES (%(followee_shard)s, %(followee_id)s, %(follower_shard)s %% 16, 1)
    ON CONFLICT (shard, followee_id, slot) DO UPDATE SET followers = counted.followers + 1
"""

_UNCOUNT_FOLLOWER = """
    UPDATE follower_counts SET followers = followers - 1
     WHERE shard = %(followee_shard)s
       AND followee_id = %(followee_id)s AND slot = %(follower_shard)s %% 16
"""

_ADD_DEPARTURE = """
    INSERT INTO departures (shard, follower_id, followee_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
    ON CONFLICT (shard, follower_id, followee_id) DO UPDATE SET leave_time = now()
"""

_REMOVE_DEPARTURE = """
    DELETE FROM departures
     WHERE shard = %(follower_shard)s
       AND follower_id = %(follower_id)s AND followee_id = %(followee_id)s
"""

_REMOVE_OLD_DEPARTURES = """
    DELETE FROM departures
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
       AND leave_time < now() - interval '1 hour'
"""

# Those of the pairs that stopped being follows within the last hour.
_DEPARTED = """
    SELECT departures.follower_id AS reader_id, departures.followee_id AS author_id,
           followee_counts.version
      FROM departures
      JOIN followee_counts USING (shard, follower_id)
     WHERE departures.leave_time > now() - interval '1 hour'
       AND (departures.shard, departures.follower_id, departures.followee_id) IN (
               SELECT * FROM unnest(
                   %(shards)s::smallint[], %(follower_ids)s::bigint[], %(followee_ids)s::bigint[]
               )
           )
"""

# -- Requests ----------------------------------------------------------------------------------

_ADD_SENT_REQUEST = """
    INSERT INTO sent_requests (shard, requester_id, target_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
"""

_ADD_RECEIVED_REQUEST = """
    INSERT INTO received_requests (shard, target_id, requester_id)
    VALUES (%(followee_shard)s, %(followee_id)s, %(follower_id)s)
"""

_REMOVE_SENT_REQUEST = """
    DELETE FROM sent_requests
     WHERE shard = %(follower_shard)s
       AND requester_id = %(follower_id)s AND target_id = %(followee_id)s
"""

_REMOVE_RECEIVED_REQUEST = """
    DELETE FROM received_requests
     WHERE shard = %(followee_shard)s
       AND target_id = %(followee_id)s AND requester_id = %(follower_id)s
"""

# -- Blocks, mutes, privacy --------------------------------------------------------------------

_ADD_BLOCK = """
    INSERT INTO blocks (shard, blocker_id, blocked_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
    ON CONFLICT DO NOTHING
"""

_REMOVE_BLOCK = """
    DELETE FROM blocks
     WHERE shard = %(follower_shard)s
       AND blocker_id = %(follower_id)s AND blocked_id = %(followee_id)s
"""

_ADD_MUTE = """
    INSERT INTO mutes (shard, muter_id, muted_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
    ON CONFLICT DO NOTHING
"""

_COUNT_MUTES = """
    SELECT count(*) FROM mutes WHERE shard = %(follower_shard)s AND muter_id = %(follower_id)s
"""

_REMOVE_MUTE = """
    DELETE FROM mutes
     WHERE shard = %(follower_shard)s
       AND muter_id = %(follower_id)s AND muted_id = %(followee_id)s
"""

_ADD_PRIVATE = """
    INSERT INTO private_accounts (shard, account_id) VALUES (%(shard)s, %(account_id)s)
    ON CONFLICT DO NOTHING
"""

_REMOVE_PRIVATE = """
    DELETE FROM private_accounts WHERE shard = %(shard)s AND account_id = %(account_id)s
"""

_IS_PRIVATE = """
    SELECT FROM private_accounts WHERE shard = %(shard)s AND account_id = %(account_id)s
"""

# -- Queries -----------------------------------------------------------------------------------

_COUNT_FOLLOWEES = """
    SELECT coalesce(sum(followees), 0)::bigint
      FROM followee_counts
     WHERE shard = %(shard)s AND follower_id = %(account_id)s
"""

# The relation between one account and each of several. One primary key lookup per column.
_RELATIONS = """
    SELECT other_id,
           EXISTS (
               SELECT FROM follows
                WHERE shard = %(shard)s AND follower_id = %(me)s AND followee_id = other_id
           ) AS follows,
           EXISTS (
               SELECT FROM sent_requests
                WHERE shard = %(shard)s AND requester_id = %(me)s AND target_id = other_id
           ) AS requested,
           EXISTS (
               SELECT FROM followers
                WHERE shard = %(shard)s AND followee_id = %(me)s AND follower_id = other_id
           ) AS followed_by,
           EXISTS (
               SELECT FROM received_requests
                WHERE shard = %(shard)s AND target_id = %(me)s AND requester_id = other_id
           ) AS requested_by,
           EXISTS (
               SELECT FROM blocks
                WHERE shard = %(shard)s AND blocker_id = %(me)s AND blocked_id = other_id
           ) AS blocks,
           EXISTS (
               SELECT FROM blocks
                WHERE shard = other_shard AND blocker_id = other_id AND blocked_id = %(me)s
           ) AS blocked_by,
           EXISTS (
               SELECT FROM mutes
                WHERE shard = %(shard)s AND muter_id = %(me)s AND muted_id = other_id
           ) AS mutes,
           EXISTS (
               SELECT FROM private_accounts
                WHERE shard = other_shard AND account_id = other_id
           ) AS private
      FROM unnest(%(other_shards)s::smallint[], %(other_ids)s::bigint[])
           WITH ORDINALITY AS other (other_shard, other_id, position)
     ORDER BY position
"""

# One primary key lookup per column and pair.
_CHECK = """
    SELECT EXISTS (
               SELECT FROM follows
                WHERE follows.shard = pair.shard
                  AND follows.follower_id = pair.follower_id
                  AND follows.followee_id = pair.followee_id
           ) AS follows,
           EXISTS (
               SELECT FROM mutes
                WHERE mutes.shard = pair.shard
                  AND mutes.muter_id = pair.follower_id
                  AND mutes.muted_id = pair.followee_id
           ) AS muted,
           coalesce(celebrities.mode, 'PUSHED') AS mode,
           coalesce(followee_counts.version, 0) AS version
      FROM unnest(%(shards)s::smallint[], %(follower_ids)s::bigint[], %(followee_ids)s::bigint[])
           WITH ORDINALITY AS pair (shard, follower_id, followee_id, position)
      LEFT JOIN celebrities ON celebrities.account_id = pair.followee_id
      LEFT JOIN followee_counts
             ON followee_counts.shard = pair.shard
            AND followee_counts.follower_id = pair.follower_id
     ORDER BY pair.position
"""

# One scan of the follower's part of each primary key, in one snapshot. The ids are packed, 8 bytes
# each, big-endian: 7,500 Python integers would cost more than the query.
_READING = """
    WITH followed AS MATERIALIZED (
             SELECT follows.followee_id
               FROM follows
               LEFT JOIN mutes
                      ON mutes.shard = follows.shard
                     AND mutes.muter_id = follows.follower_id
                     AND mutes.muted_id = follows.followee_id
              WHERE follows.shard = %(shard)s AND follows.follower_id = %(follower_id)s
                AND mutes.muted_id IS NULL
         )
    SELECT (
               SELECT coalesce(string_agg(int8send(followee_id), '' ORDER BY followee_id), '')
                 FROM followed
           ) AS followees,
           (
               SELECT coalesce(string_agg(int8send(followee_id), '' ORDER BY followee_id), '')
                 FROM followed
                 JOIN celebrities ON celebrities.account_id = followee_id
                WHERE mode IN ('PROMOTING', 'PULLED')
           ) AS pulled,
           (
               SELECT coalesce(string_agg(int8send(followee_id), '' ORDER BY followee_id), '')
                 FROM (
                          SELECT muted_id AS followee_id
                            FROM mutes
                           WHERE shard = %(shard)s AND muter_id = %(follower_id)s
                           UNION
                          SELECT followee_id
                            FROM departures
                           WHERE shard = %(shard)s AND follower_id = %(follower_id)s
                             AND leave_time > now() - interval '1 hour'
                      ) AS hidden
           ) AS hidden,
           coalesce(
               (
                   SELECT version
                     FROM followee_counts
                    WHERE shard = %(shard)s AND follower_id = %(follower_id)s
               ),
               0
           ) AS version
"""


class FollowState(Enum):
    """The result of a follow."""

    FOLLOWING = auto()
    REQUESTED = auto()


@dataclass(frozen=True)
class Loss:
    """A reader no longer receives an author's posts."""

    reader_id: int
    author_id: int
    version: int
    """The reader's version after this loss."""


@dataclass(frozen=True)
class Relation:
    """The relation between an account and another."""

    other_id: int
    follows: bool
    requested: bool
    followed_by: bool
    requested_by: bool
    blocks: bool
    blocked_by: bool
    mutes: bool
    private: bool

    @property
    def blocked(self) -> bool:
        """Whether one of the two blocks the other."""
        return self.blocks or self.blocked_by

    @property
    def sees(self) -> bool:
        """Whether the account may see the other's posts and lists."""
        return not self.blocked and (self.follows or not self.private)


@dataclass(frozen=True)
class Check:
    """The part of the relation between a follower and a followee that affects feeds."""

    follows: bool
    muted: bool
    mode: Mode
    version: int


@dataclass(frozen=True)
class Reading:
    """The authors whose posts a reader receives. Ids are ascending, 8 bytes each, big-endian."""

    followees: bytes
    pulled: bytes
    hidden: bytes
    version: int


@dataclass(frozen=True)
class _Edge:
    """A reader and an author, whether or not the one follows the other."""

    follower_id: int
    followee_id: int

    @property
    def reverse(self) -> "_Edge":
        return _Edge(self.followee_id, self.follower_id)

    @property
    def values(self) -> dict[str, int]:
        return {
            "follower_id": self.follower_id,
            "follower_shard": shard_of(self.follower_id),
            "followee_id": self.followee_id,
            "followee_shard": shard_of(self.followee_id),
        }


class Relations:
    """Relations between accounts, in PostgreSQL. Every method may raise Unavailable."""

    def __init__(
        self, database: Database, outbox: Outbox, *, follow_limit: int, mute_limit: int
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._follow_limit = follow_limit
        self._mute_limit = mute_limit

    # -- Changes -------------------------------------------------------------------------------

    async def follow(self, follower_id: int, followee_id: int) -> FollowState:
        """Makes one account follow another or, if the other is private, request to follow it.

        Raises:
            AccountUnknown: one blocks the other.
            FollowLimit: the follower has reached the limit of follows and requests.
        """
        edge = _Edge(follower_id, followee_id)
        async with self._outbox.transaction() as tx:
            count = await _add_and_lock(tx, edge)
            [relation] = await _relations(tx.connection, follower_id, [followee_id])
            if relation.blocked:
                raise AccountUnknown(followee_id)
            if relation.follows:
                return FollowState.FOLLOWING
            if relation.requested and relation.private:
                return FollowState.REQUESTED
            # A request already counts toward the limit.
            if not relation.requested and count >= self._follow_limit:
                raise FollowLimit(self._follow_limit)
            if relation.private:
                await _request(tx, edge)
                return FollowState.REQUESTED
            await _withdraw(tx, edge)
            await _connect(tx, edge)
            return FollowState.FOLLOWING

    async def unfollow(self, follower_id: int, followee_id: int) -> list[Loss]:
        """Removes a follow and a request to follow.

        Returns the losses of the last hour, so a repeated call returns them again.
        """
        edge = _Edge(follower_id, followee_id)
        async with self._outbox.transaction() as tx:
            if not await _lock(tx, edge):
                return []
            await _withdraw(tx, edge)
            await _disconnect(tx, [edge])
            return await _losses(tx, [edge])

    async def accept(self, account_id: int, requester_id: int) -> None:
        """Accepts a request to follow; does nothing if `requester_id` already follows.

        Raises:
            FollowRequestUnknown: it neither requested to follow nor follows.
        """
        edge = _Edge(requester_id, account_id)
        async with self._outbox.transaction() as tx:
            if await _lock(tx, edge) and await _withdraw(tx, edge):
                await _connect(tx, edge)
                return
            [relation] = await _relations(tx.connection, account_id, [requester_id])
            if not relation.followed_by:
                raise FollowRequestUnknown(requester_id)

    async def decline(self, account_id: int, requester_id: int) -> None:
        """Removes a request to follow."""
        edge = _Edge(requester_id, account_id)
        async with self._outbox.transaction() as tx:
            if await _lock(tx, edge):
                await _withdraw(tx, edge)

    async def remove_follower(self, account_id: int, follower_id: int) -> list[Loss]:
        """Removes a follow; returns losses as `unfollow` does."""
        edge = _Edge(follower_id, account_id)
        async with self._outbox.transaction() as tx:
            if not await _lock(tx, edge):
                return []
            await _disconnect(tx, [edge])
            return await _losses(tx, [edge])

    async def block(self, blocker_id: int, blocked_id: int) -> list[Loss]:
        """Removes follows and requests in both directions, and prevents new ones.

        Returns the losses of the last hour, so a repeated call returns them again.
        """
        edge = _Edge(blocker_id, blocked_id)
        edges = sorted((edge, edge.reverse), key=lambda each: each.follower_id)
        async with self._outbox.transaction() as tx:
            for each in edges:
                await _add_and_lock(tx, each)
            added = await tx.connection.execute(_ADD_BLOCK, edge.values)
            if added.rowcount:
                for each in edges:
                    await _withdraw(tx, each)
                await _disconnect(tx, edges)
            return await _losses(tx, edges)

    # Removing a block creates no relation, so this needs no lock.
    async def unblock(self, blocker_id: int, blocked_id: int) -> None:
        """Removes a block."""
        await self._database.execute(_REMOVE_BLOCK, _Edge(blocker_id, blocked_id).values)

    async def mute(self, muter_id: int, muted_id: int) -> list[Loss]:
        """Excludes an account's posts from another's feed; returns the loss to hide.

        Returns a loss even if the muter does not follow the account: if it follows later, posts may
        reach the feed before the event of that follow arrives.

        Raises:
            AccountUnknown: one blocks the other.
            MuteLimit: the muter has reached the limit of mutes.
        """
        edge = _Edge(muter_id, muted_id)
        async with self._outbox.transaction() as tx:
            await _add_and_lock(tx, edge)
            [relation] = await _relations(tx.connection, muter_id, [muted_id])
            if relation.blocked:
                raise AccountUnknown(muted_id)
            if not relation.mutes:
                # The muter is locked, so the count cannot change.
                [count] = await fetch(tx.connection, _COUNT_MUTES, edge.values, scalar_row)
                if count >= self._mute_limit:
                    raise MuteLimit(self._mute_limit)
                await tx.connection.execute(_ADD_MUTE, edge.values)
                await _change(tx, edge)
            [check] = await _check(tx.connection, [edge])
            return [Loss(muter_id, muted_id, check.version)]

    async def unmute(self, muter_id: int, muted_id: int) -> None:
        """Restores an account's posts in another's feed, if the other follows it."""
        edge = _Edge(muter_id, muted_id)
        async with self._outbox.transaction() as tx:
            if not await _lock(tx, edge):
                return
            removed = await tx.connection.execute(_REMOVE_MUTE, edge.values)
            if removed.rowcount:
                await _change(tx, edge)

    # A concurrent follow that still reads the account as public counts as having come earlier, so
    # this needs no lock.
    async def set_private(self, account_id: int, private: bool) -> None:
        """Makes an account private or public."""
        query = _ADD_PRIVATE if private else _REMOVE_PRIVATE
        await self._database.execute(query, of_account(account_id))

    # -- Queries -------------------------------------------------------------------------------

    async def is_private(self, account_id: int) -> bool:
        """Reports whether an account is private."""
        return await self._database.execute(_IS_PRIVATE, of_account(account_id)) > 0

    async def count_followees(self, account_id: int) -> int:
        """Returns how many accounts an account follows."""
        count: int
        [count] = await self._database.fetch(_COUNT_FOLLOWEES, of_account(account_id), scalar_row)
        return count

    async def between(self, me: int, other_ids: Sequence[int]) -> list[Relation]:
        """Returns the relation between an account and each of several, in their order."""
        async with self._database.connection() as connection:
            return await _relations(connection, me, other_ids)

    async def check(self, pairs: Sequence[tuple[int, int]]) -> list[Check]:
        """Returns the relation of each (follower, followee) pair, in their order."""
        async with self._database.connection() as connection:
            return await _check(connection, [_Edge(*pair) for pair in pairs])

    async def reading(self, follower_id: int) -> Reading:
        """Returns the authors whose posts an account receives, in one snapshot."""
        values = {"shard": shard_of(follower_id), "follower_id": follower_id}
        [reading] = await self._database.fetch(_READING, values, class_row(Reading), binary=True)
        return reading


# -- Parts of changes: each requires the lock on the edge's follower ---------------------------


async def _lock(tx: Transaction, edge: _Edge) -> tuple[int] | None:
    """Locks a reader; returns how many follows and requests count toward its limit.

    None: the reader has no row, because it has never followed, requested, muted or blocked.
    """
    cursor = await tx.connection.execute(_LOCK_READER, edge.values)
    return await cursor.fetchone()


async def _add_and_lock(tx: Transaction, edge: _Edge) -> int:
    """Like `_lock`, but first adds the reader's row if there is none."""
    row = await _lock(tx, edge)
    while row is None:
        await tx.connection.execute(_ADD_READER, edge.values)
        row = await _lock(tx, edge)
    return row[0]


async def _request(tx: Transaction, edge: _Edge) -> None:
    await tx.connection.execute(_ADD_SENT_REQUEST, edge.values)
    await tx.connection.execute(_ADD_RECEIVED_REQUEST, edge.values)
    await tx.connection.execute(_COUNT_REQUESTED, {**edge.values, "delta": 1})


async def _withdraw(tx: Transaction, edge: _Edge) -> bool:
    """Removes a request; reports whether there was one."""
    removed = await tx.connection.execute(_REMOVE_SENT_REQUEST, edge.values)
    if removed.rowcount:
        await tx.connection.execute(_REMOVE_RECEIVED_REQUEST, edge.values)
        await tx.connection.execute(_COUNT_REQUESTED, {**edge.values, "delta": -1})
    return removed.rowcount > 0


async def _connect(tx: Transaction, edge: _Edge) -> None:
    await tx.connection.execute(_ADD_FOLLOW, edge.values)
    await tx.connection.execute(_ADD_FOLLOWER, edge.values)
    await tx.connection.execute(_REMOVE_DEPARTURE, edge.values)
    await tx.connection.execute(_COUNT_FOLLOWEE, {**edge.values, "delta": 1})
    await _change(tx, edge)
    await tx.connection.execute(_COUNT_FOLLOWER, edge.values)


async def _disconnect(tx: Transaction, edges: Sequence[_Edge]) -> None:
    """Removes those of the edges that are follows."""
    removed_edges = []
    for edge in edges:
        removed = await tx.connection.execute(_REMOVE_FOLLOW, edge.values)
        if removed.rowcount:
            await tx.connection.execute(_REMOVE_FOLLOWER, edge.values)
            await tx.connection.execute(_REMOVE_OLD_DEPARTURES, edge.values)
            await tx.connection.execute(_ADD_DEPARTURE, edge.values)
            await tx.connection.execute(_COUNT_FOLLOWEE, {**edge.values, "delta": -1})
            await _change(tx, edge)
            removed_edges.append(edge)
    for edge in sorted(removed_edges, key=lambda each: each.followee_id):
        await tx.connection.execute(_UNCOUNT_FOLLOWER, edge.values)


async def _change(tx: Transaction, edge: _Edge) -> None:
    """Increments the follower's version and publishes FollowChanged."""
    await tx.connection.execute(_NEXT_VERSION, edge.values)
    tx.publish(FollowChanged(follower_id=edge.follower_id, followee_id=edge.followee_id))


async def _losses(tx: Transaction, edges: Sequence[_Edge]) -> list[Loss]:
    return await fetch(tx.connection, _DEPARTED, _columns(edges), class_row(Loss))


# -- Queries, inside or outside of changes -----------------------------------------------------


async def _relations(
    connection: AsyncConnection, me: int, other_ids: Sequence[int]
) -> list[Relation]:
    values = {
        "me": me,
        "shard": shard_of(me),
        "other_ids": int_array(other_ids),
        "other_shards": int_array(map(shard_of, other_ids)),
    }
    return await fetch(connection, _RELATIONS, values, class_row(Relation))


async def _check(connection: AsyncConnection, edges: Sequence[_Edge]) -> list[Check]:
    cursor = await connection.execute(_CHECK, _columns(edges))
    return [
        Check(follows, muted, Mode(mode), version)
        for follows, muted, mode, version in await cursor.fetchall()
    ]


def _columns(edges: Sequence[_Edge]) -> dict[str, str]:
    return {
        "shards": int_array(shard_of(edge.follower_id) for edge in edges),
        "follower_ids": int_array(edge.follower_id for edge in edges),
        "followee_ids": int_array(edge.followee_id for edge in edges),
    }
