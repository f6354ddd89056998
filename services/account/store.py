"""All SQL of the account service."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row, scalar_row

from services.account.errors import UsernameTaken
from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database, fetch, int_array

_NEW_ID = "SELECT next_id(%(shard)s)"

_CLAIM_USERNAME = """
    INSERT INTO usernames (normal_name, account_id) VALUES (%(normal_name)s, %(account_id)s)
"""

_ADD_ACCOUNT = """
    INSERT INTO accounts (shard, account_id, username, password_hash)
    VALUES (%(shard)s, %(account_id)s, %(username)s, %(password_hash)s)
"""

# Answered by the primary key of usernames.
_ID_BY_USERNAME = "SELECT account_id FROM usernames WHERE normal_name = %(normal_name)s"

# The shards prune partitions. Answered by the primary key.
_ACCOUNTS = """
    SELECT account_id, username, password_hash
      FROM accounts
     WHERE shard = ANY(%(shards)s::smallint[]) AND account_id = ANY(%(account_ids)s::bigint[])
"""

_ADD_SESSION = """
    INSERT INTO sessions (shard, account_id, session_id, token_hash, expire_time)
    VALUES (%(shard)s, %(account_id)s, next_id(%(shard)s), %(token_hash)s, %(expire_time)s)
    RETURNING session_id
"""

# Only the newest token of a session rotates it. Of two concurrent rotations, one finds no row.
_ROTATE_SESSION = """
    UPDATE sessions
       SET token_hash = %(new_hash)s, expire_time = %(expire_time)s
     WHERE shard = %(shard)s AND account_id = %(account_id)s AND session_id = %(session_id)s
       AND token_hash = %(old_hash)s AND expire_time > now()
"""

_END_SESSION = """
    DELETE FROM sessions
     WHERE shard = %(shard)s AND account_id = %(account_id)s AND session_id = %(session_id)s
"""


@dataclass(frozen=True)
class Account:
    """One account."""

    account_id: int
    username: str
    password_hash: str


def normal_name(username: str) -> str:
    """Returns the normalized form of a username, which must be unique."""
    return username.casefold()


class AccountStore:
    """Accounts and sessions in PostgreSQL. Every method may raise Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_account(self, shard: int, username: str, password_hash: str) -> Account:
        """Adds an account on a shard.

        Raises:
            UsernameTaken: another account has the username.
        """
        async with self._database.transaction() as connection:
            [account_id] = await fetch(connection, _NEW_ID, {"shard": shard}, scalar_row)
            try:
                await connection.execute(
                    _CLAIM_USERNAME,
                    {"normal_name": normal_name(username), "account_id": account_id},
                )
            except psycopg.errors.UniqueViolation:
                raise UsernameTaken(username) from None
            await connection.execute(
                _ADD_ACCOUNT,
                {
                    "shard": shard,
                    "account_id": account_id,
                    "username": username,
                    "password_hash": password_hash,
                },
            )
        return Account(account_id, username, password_hash)

    async def account(self, account_id: int) -> Account | None:
        """Returns an account."""
        return (await self.accounts([account_id])).get(account_id)

    async def account_by_username(self, username: str) -> Account | None:
        """Returns the account with a username, ignoring letter case."""
        values = {"normal_name": normal_name(username)}
        found = await self._database.fetch(_ID_BY_USERNAME, values, scalar_row)
        # Two statements, not a join: the name and the account may be on different machines.
        return await self.account(found[0]) if found else None

    async def accounts(self, account_ids: Sequence[int]) -> dict[int, Account]:
        """Returns those of the accounts that exist, by id."""
        values = {
            "shards": int_array({*map(shard_of, account_ids)}),
            "account_ids": int_array({*account_ids}),
        }
        found = await self._database.fetch(_ACCOUNTS, values, class_row(Account))
        return {account.account_id: account for account in found}

    async def add_session(self, account_id: int, token_hash: bytes, expire_time: datetime) -> int:
        """Adds a session with the hash of its newest refresh token; returns the session's id."""
        values = {
            "shard": shard_of(account_id),
            "account_id": account_id,
            "token_hash": token_hash,
            "expire_time": expire_time,
        }
        session_id: int
        [session_id] = await self._database.fetch(_ADD_SESSION, values, scalar_row)
        return session_id

    async def rotate_session(
        self,
        account_id: int,
        session_id: int,
        *,
        old_hash: bytes,
        new_hash: bytes,
        expire_time: datetime,
    ) -> bool:
        """Replaces a session's newest token; returns False if `old_hash` is not that token's."""
        values = {
            "shard": shard_of(account_id),
            "account_id": account_id,
            "session_id": session_id,
            "old_hash": old_hash,
            "new_hash": new_hash,
            "expire_time": expire_time,
        }
        return await self._database.execute(_ROTATE_SESSION, values) == 1

    async def end_session(self, account_id: int, session_id: int) -> None:
        """Ends a session; does nothing if there is none."""
        shard = shard_of(account_id)
        values = {"shard": shard, "account_id": account_id, "session_id": session_id}
        await self._database.execute(_END_SESSION, values)
