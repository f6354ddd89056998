"""The pool of a service's own PostgreSQL schema."""

import select
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from services.common.config import DatabaseSettings
from services.common.errors import Unavailable

# The server shuts down, fails over, is overloaded, or gives way in a deadlock: all pass.
_PASSING = (
    psycopg.OperationalError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    PoolTimeout,
)


class Database:
    """Gives connections out of a pool, and tells a database that is away as Unavailable."""

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
        """Gives a connection on which each statement is a transaction of its own.

        Raises:
            Unavailable: the database is away or overloaded.
        """
        try:
            async with self._pool.connection() as connection:
                yield connection
        except _PASSING as error:
            raise Unavailable("The database") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Gives a connection inside one transaction, committed unless an error leaves it.

        Raises:
            Unavailable: the database is away or overloaded.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection


def int_array(numbers: Iterable[int]) -> str:
    """Returns numbers as an array, for a parameter that is cast to one.

    psycopg itself looks at each number's type, and takes seven times as long: 0.2 ms for 100 ids.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


async def _check(connection: AsyncConnection) -> None:
    """Raises an error unless a connection works, so that it is replaced before a caller meets it.

    A server that ends a connection says so, or its kernel does. To ask it each time would take as
    long again as a short query.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)
