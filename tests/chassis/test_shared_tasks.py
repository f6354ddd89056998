"""Tasks that several callers share: one per key, which outlives its callers."""

import asyncio
from collections.abc import Sequence

import pytest

from services.chassis import context
from services.chassis.shared_tasks import SharedTasks
from tests.eventually import eventually


class Work:
    """Returns the sum of some keys once the test allows it."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_end = asyncio.Event()

    async def __call__(self, keys: Sequence[int] = ()) -> int:
        self.calls.append([*keys])
        await self.may_end.wait()
        return sum(keys)


async def test_concurrent_callers_share_one_task():
    tasks, work = SharedTasks(), Work()
    callers = [asyncio.create_task(tasks.run("key", work)) for _ in range(3)]
    other = asyncio.create_task(tasks.run("other", work))
    await asyncio.sleep(0)
    assert len(tasks) == 2

    work.may_end.set()

    assert await asyncio.gather(*callers, other) == [0] * 4
    assert len(work.calls) == 2


async def test_an_ended_task_is_removed_whether_it_succeeds_or_fails():
    tasks, calls = SharedTasks(), []

    async def work() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("the first one fails")
        return len(calls)

    results = await asyncio.gather(*(tasks.run(1, work) for _ in range(2)), return_exceptions=True)
    assert [str(error) for error in results] == ["the first one fails"] * 2
    assert await tasks.run(1, work) == 2
    assert await tasks.run(1, work) == 3
    assert tasks.get(1) is None


async def test_a_canceled_caller_does_not_cancel_the_task():
    tasks, work = SharedTasks(), Work()
    first, second = (asyncio.create_task(tasks.run(1, work)) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    work.may_end.set()

    assert first.cancelled()
    assert await second == 0


async def test_a_task_has_the_trace_of_its_first_caller_but_no_deadline():
    context.enter(context.CallContext(trace_id="ab" * 16, user_id=7, deadline=1.0))

    async def work() -> context.CallContext:
        return context.current()

    inside = await SharedTasks().run(1, work)

    assert inside == context.CallContext(trace_id="ab" * 16, user_id=7, deadline=None)
    assert context.current().deadline == 1.0


async def test_one_task_answers_all_keys_without_a_task():
    tasks, work = SharedTasks(), Work()
    [first] = tasks.start_batch([1, 2], work)
    both = tasks.start_batch([2, 3, 4], work)
    assert tasks.start_batch([1, 4], work) == both
    [second] = both - {first}
    assert [tasks.get(key) for key in (1, 2, 3, 4)] == [first, first, second, second]

    work.may_end.set()

    assert await asyncio.gather(first, second) == [3, 7]
    assert work.calls == [[1, 2], [3, 4]]
    assert len(tasks) == 0


async def test_nothing_is_started_for_no_keys():
    tasks, work = SharedTasks(), Work()

    assert tasks.start_batch([], work) == set()
    assert len(tasks) == 0


async def test_an_error_that_no_caller_receives_is_not_logged_as_lost(caplog):
    tasks = SharedTasks()

    async def work() -> None:
        raise ValueError

    tasks.start(1, work)
    await eventually(lambda: asyncio.sleep(0, len(tasks) == 0))

    assert caplog.records == []


async def test_closing_cancels_all_tasks_and_waits_for_them():
    tasks, ended = SharedTasks(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    running = tasks.start(1, work)
    caller = asyncio.create_task(tasks.run(1, work))
    await asyncio.sleep(0)
    new = tasks.start(2, work)
    await tasks.close()

    assert (running.cancelled(), new.cancelled(), len(tasks)) == (True, True, 0)
    assert ended == [1]
    with pytest.raises(asyncio.CancelledError):
        await caller
