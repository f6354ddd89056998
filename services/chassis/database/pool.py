"""The connection pool for a service's own PostgreSQL schema."""

import select
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import AsyncRowFactory
from psycopg.sql import Composed
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from services.chassis.config import DatabaseSettings
from services.chassis.errors import Unavailable

# Raised while the server shuts down, fails over, is overloaded, or resolves a deadlock.
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    PoolTimeout,
)

Query = LiteralString | Composed
Row = TypeVar("Row")


class Database:
    """Provides pooled connections, and raises Unavailable for transient database errors."""

    def __init__(self, settings: DatabaseSettings) -> None:
        milliseconds = round(settings.database_timeout_seconds * 1000)
        self._pool = AsyncConnectionPool(
            settings.database_url.get_secret_value(),
            open=False,
            min_size=1,
            max_size=settings.database_pool_size,
            timeout=settings.database_timeout_seconds,
            check=_check,
            reconnect_timeout=5.0,
            kwargs={
                "autocommit": True,
                "connect_timeout": 3,
                "options": f"-c statement_timeout={milliseconds}",
            },
        )

    async def __aenter__(self) -> "Database":
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Provides a connection in autocommit mode.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        try:
            async with self._pool.connection() as connection:
                yield connection
        except _TRANSIENT as error:
            raise Unavailable("The database") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Provides a connection in a transaction, which commits unless the block raises an error.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(
        self,
        query: Query,
        values: Mapping[str, Any],
        rows: AsyncRowFactory[Row],
        *,
        binary: bool = False,
    ) -> list[Row]:
        """Runs a statement on a connection from the pool, and returns its rows.

        `binary`: whether the server sends values in binary format.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        async with self.connection() as connection:
            return await fetch(connection, query, values, rows, binary=binary)

    async def execute(self, query: Query, values: Mapping[str, Any]) -> int:
        """Runs a statement on a connection from the pool, and returns how many rows it changed.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        async with self.connection() as connection:
            return (await connection.execute(query, values)).rowcount

    async def purge(self, query: Query, values: Mapping[str, Any], *, batch: int) -> int:
        """Runs a statement that deletes up to `%(limit)s` rows, until it finds fewer than `batch`.

        Returns the total number of deleted rows.

        Raises:
            Unavailable: the database is unavailable or overloaded.
        """
        purged = deleted = await self.execute(query, {**values, "limit": batch})
        while deleted == batch:
            deleted = await self.execute(query, {**values, "limit": batch})
            purged += deleted
        return purged


async def fetch(
    connection: AsyncConnection,
    query: Query,
    values: Mapping[str, Any],
    rows: AsyncRowFactory[Row],
    *,
    binary: bool = False,
) -> list[Row]:
    """Runs a statement and returns its rows."""
    cursor = connection.cursor(row_factory=rows, binary=binary)
    await cursor.execute(query, values)
    return await cursor.fetchall()


def int_array(numbers: Iterable[int]) -> str:
    """Returns a PostgreSQL array literal, for a parameter that the statement casts to an array.

    psycopg's own conversion inspects the type of each number and takes seven times as long: 0.2 ms
    for 100 ids.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


async def _check(connection: AsyncConnection) -> None:
    """Raises an error if a connection is broken, so that the pool replaces it before use.

    Queries the server only if the socket is readable, because a server (or its kernel) that closes
    a connection makes the socket readable. A query every time would take as long as a short
    statement.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)
