"""kill -9 in a given step of the pipeline: every photo becomes READY, without duplicates.

The step is deterministic: the worker records each finished step, and the test kills it at the
given one. With PHOTOMESH_PROVE the test kills it in each step, and also kills S3 and the broker.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from photomesh.media.v1 import media_service_pb2 as pb

from deploy.local.stack import Stack
from services.media.pipeline.outputs import STEPS
from services.media.storage.keys import key_prefix
from services.media.storage.variants import Variants
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.mishaps import count_dead_letters
from tests.pictures import photo

pytestmark = pytest.mark.prove

PROVE = "PHOTOMESH_PROVE" in os.environ

KILLED_IN = [*STEPS] if PROVE else ["picture"]
_TRIES = 20


@pytest.fixture(scope="module")
def mesh(infrastructure: Stack) -> Iterator[Stack]:
    """Media and its worker, which records each step separately so that it can be killed there."""
    if not PROVE:
        infrastructure.up(["media", "media-worker"])
        yield infrastructure
        return
    usual = infrastructure.processes["media-worker"]
    telling = {**usual.environment, "PHOTOMESH_PROGRESS_SECONDS": "0"}
    infrastructure.processes["media-worker"] = replace(usual, environment=telling)
    infrastructure.up(["media", "media-worker"])
    yield infrastructure
    infrastructure.processes["media-worker"] = usual
    infrastructure.up(["media-worker"])


def kill_at(mesh: Stack, victim: str, media_id: int, step: str) -> bool:
    """Kills a process when a step is recorded. Returns whether the media was still PROCESSING."""
    with psycopg.connect(mesh.database_url("media"), autocommit=True) as database:

        def look() -> tuple[str, list[str]]:
            query = "SELECT state, steps_done FROM media WHERE media_id = %s"
            return database.execute(query, [media_id]).fetchone()

        deadline = time.monotonic() + PATIENCE_SECONDS
        state, steps = look()
        while step not in steps and state != "READY":
            assert time.monotonic() < deadline, (state, steps)
            state, steps = look()
        os.kill(mesh.pid(victim), signal.SIGKILL)
        return look()[0] == "PROCESSING"


async def assert_all_become_ready(uploader, s3, media: list[pb.Media]) -> None:
    for each in media:
        ready = await eventually(
            lambda each=each: uploader.get(each.media_id),
            lambda found: found.state in (pb.MEDIA_STATE_READY, pb.MEDIA_STATE_FAILED),
        )
        assert ready.state == pb.MEDIA_STATE_READY
        prefix = key_prefix(each.media_id, each.owner_id)
        stored = await Variants(s3).sizes(prefix)
        named = {
            variant.url.partition(prefix)[2].partition("?")[0]: variant.size_bytes
            for variant in ready.variants
        }
        assert stored == named


async def crash(mesh, uploader, s3, victim: str, step: str) -> None:
    dead_before = await asyncio.to_thread(count_dead_letters, mesh)
    for attempt in range(_TRIES):
        # Two more are in progress.
        files = [photo(2000, 1500, seed=attempt), *(photo(600, 450, seed=n) for n in (100, 101))]
        media = [await uploader.upload(file) for file in files]
        killed_in_time = await asyncio.to_thread(kill_at, mesh, victim, media[0].media_id, step)
        await asyncio.to_thread(mesh.kill, victim)
        await asyncio.to_thread(mesh.start, victim)
        await assert_all_become_ready(uploader, s3, media)
        if killed_in_time:
            break
    else:
        pytest.fail(f"{victim} was never killed in time")
    assert await asyncio.to_thread(count_dead_letters, mesh) == dead_before


@pytest.mark.parametrize("step", KILLED_IN)
async def test_photos_become_ready_if_the_worker_dies_after_a_step(mesh, uploader, s3, step):
    await crash(mesh, uploader, s3, "media-worker", step)


@pytest.mark.parametrize("step", ["picture", "w600.avif"])
@pytest.mark.parametrize("victim", ["s3", "kafka"])
@pytest.mark.skipif(not PROVE, reason="tests/mesh/test_crashes.py is a short version of it")
async def test_photos_become_ready_if_a_part_dies_after_a_step(mesh, uploader, s3, victim, step):
    await crash(mesh, uploader, s3, victim, step)
