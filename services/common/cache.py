"""Valkey or Redis: scripts that run beside the data of one owner, and plain values.

All keys of an owner (an account, say) carry its id in braces, as `feed:{17}` does, so that in a
cluster they lie on one node, in the slot of the text `17`.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as CacheConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as CacheTimeoutError

from services.common.config import CacheSettings
from services.common.errors import Unavailable

# A script makes its keys itself, so that one call may touch many owners of one node; the server
# still refuses keys that are not there.
_SHEBANG = "#!lua flags=allow-cross-slot-keys\n"


@dataclass(frozen=True)
class Script:
    """A Lua script. It gets no KEYS: it makes them from the ids in ARGV, as `feed:{<id>}`."""

    text: str
    source: str = field(init=False, repr=False)
    """The whole program as the server gets it."""
    sha: str = field(init=False, repr=False)
    """Its SHA-1 in hexadecimal, by which the server knows it."""

    def __post_init__(self) -> None:
        source = _SHEBANG + self.text
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "sha", hashlib.sha1(source.encode()).hexdigest())  # noqa: S324


class Cache:
    """A Valkey. Every method raises Unavailable when it is away, slow, loading or full."""

    def __init__(self, valkey: Redis) -> None:
        self._valkey = valkey

    async def run(self, script: Script, owner_id: int, args: Sequence[bytes | str | int]) -> Any:
        """Runs a script on the node that has the owner's keys, and returns what it returns.

        The id decides only where: a script that needs it gets it in `args`.
        """
        with told_as_unavailable():
            return await self._evaluate(script, args)

    async def run_on_owners(
        self, script: Script, owner_ids: Sequence[int], args: Sequence[bytes | str | int]
    ) -> list[Any]:
        """Runs a script once on each node that has some of the owners.

        Its ARGV are `args` and then the ids of that node's owners. Returns a result per node.
        When a node fails, others may have run it; and it may run again on owners that it had
        reached when their slot moved: it must be idempotent.
        """
        if not owner_ids:
            return []
        with told_as_unavailable():
            return [await self._evaluate(script, [*args, *owner_ids])]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Returns the values of the keys in their order; None where there is none."""
        if not keys:
            return []
        with told_as_unavailable():
            values: list[Any] = await self._valkey.mget(keys)
        return values

    async def put_many(self, values: Mapping[str, bytes], *, seconds: int, only_new: bool) -> None:
        """Sets values that live for `seconds`; with `only_new`, leaves those that exist."""
        with told_as_unavailable():
            pipeline = self._valkey.pipeline(transaction=False)
            for key, value in values.items():
                pipeline.set(key, value, ex=seconds, nx=only_new)
            await pipeline.execute()

    async def delete(self, key: str) -> None:
        """Removes a key, if it exists."""
        with told_as_unavailable():
            await self._valkey.unlink(key)

    async def _evaluate(self, script: Script, args: Sequence[bytes | str | int]) -> Any:
        try:
            return await self._valkey.evalsha(script.sha, 0, *args)
        except NoScriptError:
            return await self._valkey.eval(script.source, 0, *args)


@asynccontextmanager
async def connect(settings: CacheSettings) -> AsyncIterator[Cache]:
    """Yields a bounded client; it connects when it is first used."""
    async with connect_redis(settings) as valkey:
        yield Cache(valkey)


def connect_redis(settings: CacheSettings) -> Redis:
    """Returns a client with a bounded pool; it connects when it is first used."""
    pool = BlockingConnectionPool.from_url(
        settings.valkey_url,
        max_connections=settings.valkey_pool_size,
        timeout=settings.valkey_timeout_seconds,
        socket_timeout=settings.valkey_timeout_seconds,
        socket_connect_timeout=settings.valkey_timeout_seconds,
        health_check_interval=30,
        # One more attempt: a restarted server leaves a pool of dead connections behind.
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.05), 1),
        retry_on_error=[CacheConnectionError],
    )
    return Redis.from_pool(pool)


@contextmanager
def told_as_unavailable() -> Iterator[None]:
    """Tells a cache that is away, slow, loading or full as Unavailable.

    Raises:
        Unavailable: any of these.
    """
    try:
        yield
    except (CacheConnectionError, CacheTimeoutError, RedisError) as error:
        raise Unavailable("The cache") from error
