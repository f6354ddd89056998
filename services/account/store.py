"""All SQL of the account service."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from services.account.errors import UsernameTaken
from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database, int_array

_NEW_ID = "SELECT next_id(%(shard)s)"

_CLAIM_USERNAME = """
    INSERT INTO usernames (normal_name, account_id) VALUES (%(normal_name)s, %(account_id)s)
"""

_ADD_ACCOUNT = """
    INSERT INTO accounts (shard, account_id, username, password_hash)
    VALUES (%(shard)s, %(account_id)s, %(username)s, %(password_hash)s)
"""

# Answered by the primary key.
_ACCOUNT = """
    SELECT account_id, username, password_hash
      FROM accounts
     WHERE shard = %(shard)s AND account_id = %(account_id)s
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
    """Returns the form in which a username must be unique."""
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
            cursor = await connection.execute(_NEW_ID, {"shard": shard})
            row = await cursor.fetchone()
            assert row is not None  # noqa: S101 -- SELECT of a function returns one row.
            account_id: int = row[0]
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
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            await cursor.execute(
                _ACCOUNT, {"shard": shard_of(account_id), "account_id": account_id}
            )
            return await cursor.fetchone()

    async def account_by_username(self, username: str) -> Account | None:
        """Returns the account with a username, ignoring letter case."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _ID_BY_USERNAME, {"normal_name": normal_name(username)}
            )
            row = await cursor.fetchone()
        # Two statements, not a join: the name and the account may be on different machines.
        return await self.account(row[0]) if row else None

    async def accounts(self, account_ids: Sequence[int]) -> dict[int, Account]:
        """Returns those of the accounts that exist, by id."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            await cursor.execute(
                _ACCOUNTS,
                {
                    "shards": int_array({*map(shard_of, account_ids)}),
                    "account_ids": int_array({*account_ids}),
                },
            )
            return {account.account_id: account for account in await cursor.fetchall()}

    async def add_session(self, account_id: int, token_hash: bytes, expire_time: datetime) -> int:
        """Adds a session with the hash of its newest refresh token; returns the session's id."""
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _ADD_SESSION,
                {
                    "shard": shard_of(account_id),
                    "account_id": account_id,
                    "token_hash": token_hash,
                    "expire_time": expire_time,
                },
            )
            row = await cursor.fetchone()
        assert row is not None  # noqa: S101 -- RETURNING returns the added row.
        session_id: int = row[0]
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
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                _ROTATE_SESSION,
                {
                    "shard": shard_of(account_id),
                    "account_id": account_id,
                    "session_id": session_id,
                    "old_hash": old_hash,
                    "new_hash": new_hash,
                    "expire_time": expire_time,
                },
            )
            return cursor.rowcount == 1

    async def end_session(self, account_id: int, session_id: int) -> None:
        """Ends a session; does nothing if there is none."""
        async with self._database.connection() as connection:
            await connection.execute(
                _END_SESSION,
                {
                    "shard": shard_of(account_id),
                    "account_id": account_id,
                    "session_id": session_id,
                },
            )
