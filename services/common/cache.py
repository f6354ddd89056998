"""The connection to Valkey or Redis."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as CacheConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as CacheTimeoutError

from services.common.config import CacheSettings
from services.common.errors import Unavailable


def connect(settings: CacheSettings) -> Redis:
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
