"""Periodic jobs."""

import asyncio
import contextlib

import pytest

from services.chassis import context
from services.chassis.errors import Unavailable
from services.chassis.jobs import periodic
from tests.eventually import eventually


async def test_a_job_runs_periodically_with_a_new_trace_even_after_a_failure():
    traces: list[str] = []

    async def job() -> None:
        traces.append(context.current().trace_id)
        if len(traces) == 1:
            raise Unavailable("The database")

    worker = periodic("example", job, seconds=0.01)
    became_ready = asyncio.Event()
    running = asyncio.create_task(worker.run(became_ready.set))
    try:

        async def runs() -> int:
            return len(traces)

        await eventually(runs, lambda count: count >= 5)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    assert worker.name == "example"
    assert became_ready.is_set()
    assert len(set(traces)) == len(traces)


async def test_an_unexpected_error_ends_the_worker():
    async def job() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await periodic("example", job, seconds=0.01).run(lambda: None)
