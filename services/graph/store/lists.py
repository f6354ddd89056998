"""Lists of accounts, newest first: followers, requests, blocks and so on."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from psycopg import sql
from psycopg.rows import class_row

from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database

# Keyset, not OFFSET: a celebrity's thousandth page must cost as much as the first. Answered by the
# index <table>_newest (shard, <owner>, create_time DESC, <listed> DESC).
_PAGE = """
    SELECT {listed} AS account_id, create_time
      FROM {table}
     WHERE shard = %(shard)s AND {owner} = %(owner_id)s
       AND (create_time, {listed}) < (%(before_time)s, %(before_id)s)
       {visible}
     ORDER BY create_time DESC, {listed} DESC
     LIMIT %(limit)s
"""

# Two primary key lookups per row.
_VISIBLE = """
       AND NOT EXISTS (
               SELECT FROM blocks
                WHERE blocks.shard = %(viewer_shard)s
                  AND blocker_id = %(viewer_id)s AND blocked_id = {listed}
           )
       AND NOT EXISTS (
               SELECT FROM blocks
                WHERE blocks.shard = shard_of({listed})
                  AND blocker_id = {listed} AND blocked_id = %(viewer_id)s
           )
"""


class AccountList(Enum):
    """The lists of an account: table, column of the owner, column of the listed account."""

    FOLLOWERS = ("followers", "followee_id", "follower_id")
    FOLLOWEES = ("follows", "follower_id", "followee_id")
    RECEIVED_REQUESTS = ("received_requests", "target_id", "requester_id")
    SENT_REQUESTS = ("sent_requests", "requester_id", "target_id")
    BLOCKS = ("blocks", "blocker_id", "blocked_id")
    MUTES = ("mutes", "muter_id", "muted_id")


@dataclass(frozen=True, order=True)
class Position:
    """A position in a list."""

    create_time: datetime
    account_id: int


def _query(which: AccountList) -> sql.Composed:
    table, owner, listed = (sql.Identifier(part) for part in which.value)
    # A list of blocks must include blocked accounts.
    visible = sql.SQL("" if which is AccountList.BLOCKS else _VISIBLE).format(listed=listed)
    return sql.SQL(_PAGE).format(table=table, owner=owner, listed=listed, visible=visible)


_QUERIES = {each: _query(each) for each in AccountList}


class Lists:
    """Pages of lists in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        which: AccountList,
        owner_id: int,
        viewer_id: int,
        *,
        before: Position | None,
        limit: int,
    ) -> list[Position]:
        """Returns up to `limit` accounts of a list after `before` (None: from the newest).

        Omits accounts that block the viewer or are blocked by it, except in lists of blocks.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        values = {
            "shard": shard_of(owner_id),
            "owner_id": owner_id,
            "viewer_shard": shard_of(viewer_id),
            "viewer_id": viewer_id,
            "before_time": before.create_time if before else "infinity",
            "before_id": before.account_id if before else 0,
            "limit": limit,
        }
        return await self._database.fetch(_QUERIES[which], values, class_row(Position))
