"""Audiences: an account's followers, and how its posts reach them.

An account's mode (see AudienceMode in the contract) depends on its number of followers. A gap
between the thresholds keeps accounts near them from flapping. Callers that change the number call
`update_mode` after their commit. It begins a mode change in a separate transaction: in the same
one, all new followers of a celebrity would wait for a lock on one row. If a process dies between
the two, the mode stays unchanged until the next follow or unfollow of that account.
"""

from dataclasses import dataclass
from enum import StrEnum

from photomesh.graph.v1.events_pb2 import CelebrityChanged
from psycopg import AsyncConnection
from psycopg.rows import scalar_row

from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox

# Keyset, not OFFSET: a celebrity's thousandth batch must cost as much as the first. Answered by the
# primary key alone. The ids are packed, 8 bytes each, big-endian, because creating Python integers
# would cost more than everything else.
_FOLLOWERS = """
    SELECT coalesce(string_agg(int8send(follower_id), ''), '')
      FROM (
               SELECT follower_id
                 FROM followers
                WHERE shard = %(shard)s AND followee_id = %(account_id)s
                  AND follower_id > %(after)s AND follower_id <= %(until)s
                ORDER BY follower_id
                LIMIT %(limit)s
           ) AS batch
"""

# Reads at most 16 slots and one row.
_AUDIENCE = """
    SELECT coalesce(mode, 'PUSHED'), coalesce(change_id, 0), followers
      FROM (
               SELECT coalesce(sum(followers), 0)::bigint AS followers
                 FROM follower_counts
                WHERE shard = %(shard)s AND followee_id = %(account_id)s
           ) AS counted
      LEFT JOIN celebrities ON account_id = %(account_id)s
"""

# One index-only scan of the primary key, in steps of a chunk. Numbering the rows would take three
# times as long.
_BOUNDS = """
    WITH RECURSIVE bounds (follower_id) AS (
        SELECT 0::bigint
         UNION ALL
        SELECT (
                   SELECT followers.follower_id
                     FROM followers
                    WHERE shard = %(shard)s AND followee_id = %(account_id)s
                      AND followers.follower_id > bounds.follower_id
                    ORDER BY followers.follower_id
                   OFFSET %(size)s - 1
                    LIMIT 1
               )
          FROM bounds
         WHERE bounds.follower_id IS NOT NULL
    )
    SELECT follower_id
      FROM bounds
     WHERE follower_id > 0
           -- No chunk begins after the last follower.
       AND EXISTS (
               SELECT FROM followers
                WHERE shard = %(shard)s AND followee_id = %(account_id)s
                  AND followers.follower_id > bounds.follower_id
           )
     ORDER BY follower_id
"""

_ADD_CELEBRITY = """
    INSERT INTO celebrities (account_id) VALUES (%(account_id)s) ON CONFLICT DO NOTHING
"""

_LOCK_CELEBRITY = "SELECT FROM celebrities WHERE account_id = %(account_id)s FOR UPDATE"

_BEGIN_CHANGE = """
    UPDATE celebrities SET mode = %(mode)s, change_id = change_id + 1
     WHERE account_id = %(account_id)s
"""

_FINISH_CHANGE = """
    UPDATE celebrities
       SET mode = CASE mode WHEN 'PROMOTING' THEN 'PULLED' ELSE 'PUSHED' END
     WHERE account_id = %(account_id)s AND change_id = %(change_id)s
       AND mode IN ('PROMOTING', 'DEMOTING')
"""


class Mode(StrEnum):
    """How an account's posts reach its followers."""

    PUSHED = "PUSHED"
    PROMOTING = "PROMOTING"
    PULLED = "PULLED"
    DEMOTING = "DEMOTING"


@dataclass(frozen=True)
class Thresholds:
    """The numbers of followers at which an account's mode changes."""

    promote_at: int
    demote_below: int
    """Below this number, posts are pushed again. At most `promote_at`."""

    def due(self, mode: Mode, followers: int) -> Mode | None:
        """Returns the mode that a change must begin with; None if no change is due."""
        if mode in (Mode.PUSHED, Mode.DEMOTING) and followers >= self.promote_at:
            return Mode.PROMOTING
        if mode in (Mode.PULLED, Mode.PROMOTING) and followers < self.demote_below:
            return Mode.DEMOTING
        return None


@dataclass(frozen=True)
class Audience:
    """How an account's posts reach its followers, and the number of followers."""

    mode: Mode
    change_id: int
    """The id of the latest mode change; 0: there was none."""
    followers: int


class Audiences:
    """Followers in PostgreSQL, for the delivery of posts.

    Every method may raise Unavailable.
    """

    def __init__(self, database: Database, outbox: Outbox, thresholds: Thresholds) -> None:
        self._database = database
        self._outbox = outbox
        self._thresholds = thresholds

    async def followers(self, account_id: int, *, after: int, until: int, limit: int) -> bytes:
        """Returns the ids of up to `limit` followers above `after`, up to `until`.

        The ids are ascending, 8 bytes each, big-endian.
        """
        values = {**of_account(account_id), "after": after, "until": until, "limit": limit}
        ids: bytes
        [ids] = await self._database.fetch(_FOLLOWERS, values, scalar_row, binary=True)
        return ids

    async def audience(self, account_id: int) -> Audience:
        """Returns an account's audience."""
        async with self._database.connection() as connection:
            return await _audience(connection, account_id)

    async def bounds(self, account_id: int, *, size: int) -> list[int]:
        """Returns the id of the last follower in each chunk of `size`, except the last chunk."""
        values = {**of_account(account_id), "size": size}
        return await self._database.fetch(_BOUNDS, values, scalar_row)

    async def update_mode(self, account_id: int) -> None:
        """Begins the mode change that an account's number of followers requires, if any."""
        if self._due(await self.audience(account_id)) is None:
            return
        async with self._outbox.transaction() as tx:
            await tx.connection.execute(_ADD_CELEBRITY, of_account(account_id))
            await tx.connection.execute(_LOCK_CELEBRITY, of_account(account_id))
            mode = self._due(await _audience(tx.connection, account_id))
            if mode is not None:
                await tx.connection.execute(_BEGIN_CHANGE, {**of_account(account_id), "mode": mode})
                tx.publish(CelebrityChanged(account_id=account_id))

    async def finish_change(self, account_id: int, change_id: int) -> None:
        """Finishes a mode change, unless it has already finished or was reversed."""
        values = {"account_id": account_id, "change_id": change_id}
        await self._database.execute(_FINISH_CHANGE, values)

    def _due(self, audience: Audience) -> Mode | None:
        return self._thresholds.due(audience.mode, audience.followers)


async def _audience(connection: AsyncConnection, account_id: int) -> Audience:
    cursor = await connection.execute(_AUDIENCE, of_account(account_id))
    [(mode, change_id, followers)] = await cursor.fetchall()
    return Audience(Mode(mode), change_id, followers)


def of_account(account_id: int) -> dict[str, int]:
    """Returns the parameters that select an account's rows."""
    return {"account_id": account_id, "shard": shard_of(account_id)}
