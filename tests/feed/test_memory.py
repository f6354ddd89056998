"""What feed remembers for when the cache is away: how old it may be, and who asks for it anew."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from services.feed.memory import Memory
from tests.eventually import PATIENCE_SECONDS

_TTL_SECONDS = 100 * PATIENCE_SECONDS
"""How long answers are good in these tests: none gets noticeably older while one runs."""


class Asked:
    """Answers with the square of a number, once it may."""

    def __init__(self) -> None:
        self.questions: list[Sequence[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.questions.append(keys)
        await self.may_answer.wait()
        return {key: key * key for key in keys}


def soon() -> float:
    return time.monotonic() + 0.05


def in_the_end() -> float:
    return time.monotonic() + PATIENCE_SECONDS


def lives_ago(lives: float) -> float:
    return time.monotonic() - lives * _TTL_SECONDS


async def test_all_who_want_something_ask_for_it_once():
    asked = Asked()
    memory = Memory(asked, max_values=10)
    answers = await asyncio.gather(
        *(memory.get([1, 2], until=in_the_end(), ttl=_TTL_SECONDS) for _ in range(5))
    )
    assert answers == [{1: 1, 2: 4}] * 5
    assert asked.questions == [[1, 2]]
    assert await memory.get([2], until=soon(), ttl=_TTL_SECONDS) == {2: 4}
    assert asked.questions == [[1, 2]]


async def test_nothing_is_given_beyond_its_life():
    asked = Asked()
    asked.may_answer.clear()
    memory = Memory(asked, max_values=10)
    memory.put({1: 10}, lives_ago(1))
    memory.put({2: 20}, lives_ago(0.2))
    assert await memory.get([1, 2], until=soon(), ttl=_TTL_SECONDS) == {2: 20}
    assert asked.questions == [[1]]


async def test_what_comes_too_late_is_there_for_the_next():
    asked = Asked()
    asked.may_answer.clear()
    memory = Memory(asked, max_values=10)
    assert await memory.get([3], until=soon(), ttl=_TTL_SECONDS) == {}
    asked.may_answer.set()
    assert await memory.get([3], until=in_the_end(), ttl=_TTL_SECONDS) == {3: 9}
    assert asked.questions == [[3]]


async def test_what_will_be_too_old_is_given_and_asked_for_anew_with_what_is_next():
    asked = Asked()
    memory = Memory(asked, max_values=10)
    memory.put({1: 10}, lives_ago(0.8))
    memory.put({2: 20}, lives_ago(0.2))
    memory.put({3: 30}, lives_ago(0.3))
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 10, 2: 20, 3: 30}
    await asyncio.sleep(0)
    assert asked.questions == [[1, 3]]
    await asyncio.sleep(0)
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 1, 2: 20, 3: 9}


async def test_nothing_is_asked_for_anew_for_who_does_not_want_it():
    asked = Asked()
    memory = Memory(asked, max_values=10)
    memory.put({1: 10}, lives_ago(0.9))
    assert await memory.get([1], until=soon(), ttl=_TTL_SECONDS, refresh=False) == {1: 10}
    await asyncio.sleep(0)
    assert asked.questions == []


async def test_the_oldest_make_room():
    asked = Asked()
    asked.may_answer.clear()
    memory = Memory(asked, max_values=2)
    memory.put({1: 10}, time.monotonic())
    memory.put({2: 20}, time.monotonic())
    memory.put({1: 11}, time.monotonic())
    memory.put({3: 30}, time.monotonic())
    assert await memory.get([1, 2, 3], until=soon(), ttl=_TTL_SECONDS) == {1: 11, 3: 30}
