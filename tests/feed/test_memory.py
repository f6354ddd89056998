"""Feed's in-memory cache for outages: how old entries may be, and who refreshes them."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from services.feed.memory import Memory
from tests.eventually import PATIENCE_SECONDS

_TTL_SECONDS = 100 * PATIENCE_SECONDS
"""The TTL in these tests: so long that entries do not age noticeably during a test."""


class Source:
    """Returns the squares of its keys once `may_answer` is set."""

    def __init__(self) -> None:
        self.queries: list[Sequence[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.queries.append(keys)
        await self.may_answer.wait()
        return {key: key * key for key in keys}


def soon() -> float:
    return time.monotonic() + 0.05


def much_later() -> float:
    return time.monotonic() + PATIENCE_SECONDS


def ttls_ago(ttls: float) -> float:
    return time.monotonic() - ttls * _TTL_SECONDS


async def test_concurrent_callers_share_one_query():
    source = Source()
    memory = Memory(source, max_values=10)
    answers = await asyncio.gather(
        *(memory.get([1, 2], until=much_later(), ttl=_TTL_SECONDS) for _ in range(5))
    )
    assert answers == [{1: 1, 2: 4}] * 5
    assert source.queries == [[1, 2]]
    assert await memory.get([2], until=soon(), ttl=_TTL_SECONDS) == {2: 4}
    assert source.queries == [[1, 2]]


async def test_expired_entries_are_not_returned():
    source = Source()
    source.may_answer.clear()
    memory = Memory(source, max_values=10)
    memory.put({1: 10}, ttls_ago(1))
    memory.put({2: 20}, ttls_ago(0.2))
    assert await memory.get([1, 2], until=soon(), ttl=_TTL_SECONDS) == {2: 20}
    assert source.queries == [[1]]


async def test_a_late_response_is_kept_for_the_next_caller():
    source = Source()
    source.may_answer.clear()
    memory = Memory(source, max_values=10)
    assert await memory.get([3], until=soon(), ttl=_TTL_SECONDS) == {}
    source.may_answer.set()
    assert await memory.get([3], until=much_later(), ttl=_TTL_SECONDS) == {3: 9}
    assert source.queries == [[3]]


async def test_entries_near_expiry_are_returned_and_refreshed_with_the_next_oldest():
    source = Source()
    memory = Memory(source, max_values=10)
    memory.put({1: 10}, ttls_ago(0.8))
    memory.put({2: 20}, ttls_ago(0.2))
    memory.put({3: 30}, ttls_ago(0.3))
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 10, 2: 20, 3: 30}
    await asyncio.sleep(0)
    assert source.queries == [[1, 3]]
    await asyncio.sleep(0)
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 1, 2: 20, 3: 9}


async def test_entries_are_not_refreshed_for_callers_without_renew():
    source = Source()
    memory = Memory(source, max_values=10)
    memory.put({1: 10}, ttls_ago(0.9))
    assert await memory.get([1], until=soon(), ttl=_TTL_SECONDS, refresh=False) == {1: 10}
    await asyncio.sleep(0)
    assert source.queries == []


async def test_the_oldest_entries_are_evicted():
    source = Source()
    source.may_answer.clear()
    memory = Memory(source, max_values=2)
    memory.put({1: 10}, time.monotonic())
    memory.put({2: 20}, time.monotonic())
    memory.put({1: 11}, time.monotonic())
    memory.put({3: 30}, time.monotonic())
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 11, 3: 30}
