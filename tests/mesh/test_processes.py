"""Compares the rows of deploy/processes.py with the running processes."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from deploy.local import proc
from deploy.processes import MESH
from tests.eventually import eventually
from tests.pictures import photo

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
async def traffic(person) -> None:
    """Uploads and posts several photos at once, into several feeds."""
    author, *followers = [await person().sign_up() for _ in range(4)]
    for follower in followers:
        await follower.follow(author)
        await follower.feed()

    async def share(number: int) -> None:
        await author.post(await author.upload(photo(3000, 2000, seed=number)))

    await asyncio.gather(*map(share, range(6)))
    for follower in followers:
        await eventually(follower.feed, lambda feed: len(feed["posts"]) == 6)


def resident_mib(members: Iterable[proc.Identity]) -> float:
    """Returns the resident memory of processes in MiB; shared pages count for each process."""
    pages = 0
    for member in members:
        try:
            pages += int(Path(f"/proc/{member.pid}/statm").read_text().split()[1])
        except OSError:
            # A child has ended meanwhile.
            continue
    return pages * _PAGE_BYTES / 2**20


@pytest.mark.usefixtures("traffic")
def test_every_process_stays_below_its_memory_limit(mesh):
    used = {row.name: resident_mib(proc.family(proc.identify(mesh.pid(row.name)))) for row in MESH}

    assert min(used.values()) > 10
    assert {row.name: used[row.name] for row in MESH if used[row.name] >= row.memory_mib} == {}


def test_each_consuming_process_has_a_consumer_group_of_its_name(mesh):
    admin = KafkaAdminClient(bootstrap_servers=mesh.kafka_bootstrap)
    try:
        groups = {group["group_id"] for group in admin.list_groups()}
    finally:
        admin.close()

    # Other tests on the same broker have groups too.
    assert groups & {row.name for row in MESH} == {row.name for row in MESH if row.consumes}
