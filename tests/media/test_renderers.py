"""The rendering processes are bounded, replaced when they end, and never outlive the worker."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.proc import Identity, cpu_seconds, identify, kill, send
from services.chassis.errors import Unavailable
from services.media.pipeline.outputs import Failure, Unprocessable
from services.media.pipeline.renderers import Renderers
from tests.eventually import eventually
from tests.media.conftest import LIMITS
from tests.media.pngs import RGBA, png
from tests.pictures import on_disk, photo


@pytest.fixture(scope="session")
def expensive() -> bytes:
    """A file of 81 megapixels: small, allowed, and expensive to decode."""
    return png(9_000, 9_000, colours=RGBA)


def children(pid: int) -> set[Identity]:
    """Returns the rendering processes that a process has started."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        identity
        for identity in map(identify, map(int, started))
        if identity
        and b"services.media.pipeline.child" in Path(f"/proc/{identity.pid}/cmdline").read_bytes()
    }


async def test_a_file_that_needs_too_much_memory_is_refused_and_the_next_is_rendered(expensive):
    async with Renderers(
        1, replace(LIMITS, memory_bytes=300 << 20, large_memory_bytes=300 << 20)
    ) as renderers:
        with pytest.raises(Unprocessable) as refused:
            await renderers.render(on_disk(expensive))

        assert refused.value.failure == Failure.TOO_EXPENSIVE
        assert (await renderers.render(on_disk(photo(300, 200)))).width == 300


async def test_a_file_that_takes_too_long_is_refused_and_the_next_is_rendered(expensive):
    async with Renderers(1, replace(LIMITS, cpu_seconds=0)) as renderers:
        with pytest.raises(Unprocessable) as refused:
            await renderers.render(on_disk(expensive))

        assert refused.value.failure == Failure.TOO_EXPENSIVE
        assert (await renderers.render(on_disk(photo(300, 200)))).width == 300


async def test_a_killed_child_does_not_fail_the_file():
    before = children(os.getpid())
    async with Renderers(1, LIMITS) as renderers:
        [child] = children(os.getpid()) - before
        # Stopped, so that it cannot finish before it is killed.
        send(child, signal.SIGSTOP)
        rendering = asyncio.create_task(renderers.render(on_disk(photo(300, 200))))
        await asyncio.sleep(0)
        kill([child])
        with pytest.raises(Unavailable):
            await rendering

        assert (await renderers.render(on_disk(photo(300, 200)))).width == 300


async def test_the_result_of_a_cancelled_file_is_not_taken_for_the_next():
    async with Renderers(1, LIMITS) as renderers:
        rendering = asyncio.create_task(renderers.render(on_disk(photo(2000, 1500))))
        await asyncio.sleep(0)
        rendering.cancel()
        await asyncio.gather(rendering, return_exceptions=True)

        assert (await renderers.render(on_disk(photo(300, 200)))).width == 300


async def test_a_slow_machine_does_not_fail_the_file():
    async with Renderers(1, replace(LIMITS, wall_seconds=0.001)) as renderers:
        with pytest.raises(Unavailable):
            await renderers.render(on_disk(photo(4000, 3000)))


_TRIES = 5

_PARENT = """
import asyncio, sys, tempfile
from services.media.pipeline.renderers import Limits, Renderers

async def main():
    async with Renderers(2, Limits(2**28, 2**30, 30, 60.0)) as renderers:
        assert "cv2" not in sys.modules and "numpy" not in sys.modules
        expensive = sys.stdin.buffer.read()
        files = [tempfile.TemporaryFile() for _ in range(2)]
        for file in files:
            file.write(expensive)
            file.flush()
        print("started", flush=True)
        while True:
            await asyncio.gather(*map(renderers.render, files))

asyncio.run(main())
"""


async def test_children_end_with_their_parent_even_in_the_middle_of_a_file(expensive):
    # A child may fail to write its result by chance; one that always renders on never ends quietly.
    for _ in range(_TRIES):
        if b"BrokenPipe" not in await errors_of_orphans(expensive):
            return
    pytest.fail("children run until they fail to write their results")


async def errors_of_orphans(file: bytes) -> bytes:
    """Kills a parent whose children render; returns what they write to stderr until they end."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PARENT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ".:gen"},
    )
    parent.stdin.write(file)
    parent.stdin.close()
    assert await parent.stdout.readline() == b"started\n"
    left = children(parent.pid)
    assert len(left) == 2

    async def spent() -> float:
        return sum(cpu_seconds(child.pid) for child in left)

    async def gone() -> bool:
        return not any(child.is_alive() for child in left)

    idle = await spent()
    await eventually(spent, lambda now: now > idle + 0.1)
    parent.kill()
    await parent.wait()
    try:
        await eventually(gone)
    finally:
        kill(left)
    return await parent.stderr.read()
