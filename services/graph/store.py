"""All SQL of the graph service.

A follow touches four tables, always in the same order (follows, followee_counts, followers,
follower_counts), so that two of them never wait for each other in a circle.
"""

from collections.abc import Sequence
from typing import LiteralString

from photomesh.graph.v1.events_pb2 import FollowChanged
from psycopg.rows import scalar_row

from services.common import topics
from services.common.database import Database
from services.common.ids import shard_of
from services.common.outbox import Outbox
from services.graph.errors import FollowLimit

# A concurrent insert of the same follow is waited for, then there is one.
_ADD_FOLLOW = """
    INSERT INTO follows (shard, follower_id, followee_id)
    VALUES (%(follower_shard)s, %(follower_id)s, %(followee_id)s)
    ON CONFLICT DO NOTHING
"""

_REMOVE_FOLLOW = """
    DELETE FROM follows
     WHERE shard = %(follower_shard)s
       AND follower_id = %(follower_id)s AND followee_id = %(followee_id)s
"""

# Changes no row at the limit. Concurrent follows by one account wait here for each other, and
# each compares the limit with what the one before it has committed.
_COUNT_FOLLOWEE = """
    INSERT INTO followee_counts AS counted (shard, follower_id, followees)
    VALUES (%(follower_shard)s, %(follower_id)s, 1)
    ON CONFLICT (shard, follower_id) DO UPDATE
       SET followees = counted.followees + 1 WHERE counted.followees < %(limit)s
"""

_UNCOUNT_FOLLOWEE = """
    UPDATE followee_counts SET followees = followees - 1
     WHERE shard = %(follower_shard)s AND follower_id = %(follower_id)s
"""

_ADD_FOLLOWER = """
    INSERT INTO followers (shard, followee_id, follower_id)
    VALUES (%(followee_shard)s, %(followee_id)s, %(follower_id)s)
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

# Keyset, so that the thousandth batch of a celebrity's followers costs what the first does.
# Answered by the primary key alone.
_FOLLOWERS = """
    SELECT follower_id
      FROM followers
     WHERE shard = %(shard)s AND followee_id = %(followee_id)s
       AND follower_id > %(after)s AND follower_id <= %(until)s
     ORDER BY follower_id
     LIMIT %(limit)s
"""

# At most 16 rows.
_COUNT_FOLLOWERS = """
    SELECT coalesce(sum(followers), 0)
      FROM follower_counts
     WHERE shard = %(shard)s AND followee_id = %(followee_id)s
"""

# One scan of the primary key alone.
_CHUNKS = """
    SELECT follower_id
      FROM (
               SELECT follower_id, row_number() OVER (ORDER BY follower_id) AS number
                 FROM followers
                WHERE shard = %(shard)s AND followee_id = %(followee_id)s
           ) AS numbered
     WHERE number %% %(size)s = 0
     ORDER BY follower_id
"""

# Answered by the primary key alone.
_FOLLOWEES = """
    SELECT followee_id
      FROM follows
     WHERE shard = %(shard)s AND follower_id = %(follower_id)s
     ORDER BY followee_id
"""

# One look into the primary key for each pair.
_CHECK = """
    SELECT EXISTS (
               SELECT FROM follows
                WHERE follows.shard = pair.shard
                  AND follows.follower_id = pair.follower_id
                  AND follows.followee_id = pair.followee_id
           )
      FROM unnest(%(shards)s::smallint[], %(follower_ids)s::bigint[], %(followee_ids)s::bigint[])
           WITH ORDINALITY AS pair (shard, follower_id, followee_id, position)
     ORDER BY pair.position
"""


class GraphStore:
    """Follows in PostgreSQL. Every method may raise Unavailable."""

    def __init__(self, database: Database, outbox: Outbox, *, follow_limit: int) -> None:
        self._database = database
        self._outbox = outbox
        self._follow_limit = follow_limit

    async def follow(self, follower_id: int, followee_id: int) -> None:
        """Makes one account follow another, unless it does.

        Raises:
            FollowLimit: the follower follows as many as one may.
        """
        edge = _edge(follower_id, followee_id)
        async with self._outbox.transaction() as tx:
            added = await tx.connection.execute(_ADD_FOLLOW, edge)
            if added.rowcount == 0:
                return
            counted = await tx.connection.execute(
                _COUNT_FOLLOWEE, {**edge, "limit": self._follow_limit}
            )
            if counted.rowcount == 0:
                raise FollowLimit(self._follow_limit)
            await tx.connection.execute(_ADD_FOLLOWER, edge)
            await tx.connection.execute(_COUNT_FOLLOWER, edge)
            await tx.publish(topics.FOLLOW_CHANGED, key=follower_id, event=_changed(edge))

    async def unfollow(self, follower_id: int, followee_id: int) -> None:
        """Makes one account no longer follow another, if it does."""
        edge = _edge(follower_id, followee_id)
        async with self._outbox.transaction() as tx:
            removed = await tx.connection.execute(_REMOVE_FOLLOW, edge)
            if removed.rowcount == 0:
                return
            await tx.connection.execute(_UNCOUNT_FOLLOWEE, edge)
            await tx.connection.execute(_REMOVE_FOLLOWER, edge)
            await tx.connection.execute(_UNCOUNT_FOLLOWER, edge)
            await tx.publish(topics.FOLLOW_CHANGED, key=follower_id, event=_changed(edge))

    async def followers(self, followee_id: int, *, after: int, until: int, limit: int) -> list[int]:
        """Returns the ids of up to `limit` followers above `after`, up to `until`, ascending."""
        return await self._scalars(
            _FOLLOWERS,
            {
                "shard": shard_of(followee_id),
                "followee_id": followee_id,
                "after": after,
                "until": until,
                "limit": limit,
            },
        )

    async def count_followers(self, followee_id: int) -> int:
        """Returns how many follow an account."""
        [count] = await self._scalars(
            _COUNT_FOLLOWERS, {"shard": shard_of(followee_id), "followee_id": followee_id}
        )
        return count

    async def chunks(self, followee_id: int, *, size: int) -> list[int]:
        """Returns the ids of an account's followers number `size`, twice `size`, and so on."""
        return await self._scalars(
            _CHUNKS, {"shard": shard_of(followee_id), "followee_id": followee_id, "size": size}
        )

    async def _scalars(self, query: LiteralString, values: dict[str, int]) -> list[int]:
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(query, values)
            return await cursor.fetchall()

    async def followees(self, follower_id: int) -> list[int]:
        """Returns the ids of all whom an account follows, ascending."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(
                _FOLLOWEES, {"shard": shard_of(follower_id), "follower_id": follower_id}
            )
            return await cursor.fetchall()

    async def check(self, pairs: Sequence[tuple[int, int]]) -> list[bool]:
        """Tells for each (follower, followee) whether the one follows the other, in order."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(
                _CHECK,
                {
                    "shards": [shard_of(follower_id) for follower_id, _ in pairs],
                    "follower_ids": [follower_id for follower_id, _ in pairs],
                    "followee_ids": [followee_id for _, followee_id in pairs],
                },
            )
            return await cursor.fetchall()


def _edge(follower_id: int, followee_id: int) -> dict[str, int]:
    return {
        "follower_id": follower_id,
        "follower_shard": shard_of(follower_id),
        "followee_id": followee_id,
        "followee_shard": shard_of(followee_id),
    }


def _changed(edge: dict[str, int]) -> FollowChanged:
    return FollowChanged(follower_id=edge["follower_id"], followee_id=edge["followee_id"])
