"""Logs are rotated while their processes write."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from deploy.local import proc
from deploy.local.errors import ProcessDied
from deploy.local.ports import free_ports
from deploy.local.process import ROOT
from deploy.local.rotation import copy_and_truncate
from deploy.local.stack import Stack
from tests.eventually import eventually

_LIMIT = 20_000


@pytest.fixture
def small(tmp_path):
    often = {"PHOTOMESH_LOG_LIMIT_BYTES": str(_LIMIT), "PHOTOMESH_LOG_CHECK_SECONDS": "0.05"}
    with Stack(
        tmp_path, ports=free_ports(), ephemeral=True, environment={"log-rotation": often}
    ) as stack:
        yield stack


def chatter(stack: Stack, text: str) -> None:
    """Makes Valkey log some lines, the last of which contains `text`."""
    with redis.Redis.from_url(stack.valkey_url) as client:
        for _ in range(20):
            client.eval("redis.log(redis.LOG_WARNING, ARGV[1])", 0, f"{text} {'-' * 200}")


async def test_a_log_is_rotated_while_its_process_writes(small):
    log = small.log("valkey")
    copy = log.with_suffix(".log.1")
    older = "an older line\n" * 1_000
    log.write_text(older)
    small.up(["valkey"])
    pid = small.pid("valkey")

    async def rotated() -> bool:
        chatter(small, "early")
        return copy.exists() and log.stat().st_size < _LIMIT

    await eventually(rotated, within=60)
    kept = copy.read_text()
    assert kept.startswith(older)
    assert "early" in kept
    chatter(small, "late")

    assert "late" in log.read_text() + copy.read_text()
    assert small.pid("valkey") == pid
    assert {stat.S_IMODE(path.stat().st_mode) for path in (log, copy)} == {0o600}
    assert '"event": "log.rotated"' in small.log("log-rotation").read_text()


async def test_a_process_that_dies_after_a_rotation_is_named_with_the_end_of_its_log(small):
    log = small.log("valkey")
    log.write_text("an older line\n" * (_LIMIT // 14 - 10))
    small.up(["valkey"])

    async def rotated() -> bool:
        chatter(small, "early")
        return log.with_suffix(".log.1").exists() and log.stat().st_size < _LIMIT

    await eventually(rotated, within=60)

    redis.Redis.from_url(small.valkey_url).shutdown(nosave=True)
    with pytest.raises(ProcessDied) as caught:
        small.wait_ready("valkey")

    assert "User requested shutdown" in str(caught.value)
    assert "an older line" not in str(caught.value)


def test_following_a_log_continues_after_a_rotation(tmp_path):
    log = Stack(tmp_path, ports=free_ports()).log("valkey")
    log.write_text("before\n" * 1_000)
    command = (sys.executable, "-m", "deploy.local", "--state-dir", tmp_path)
    with subprocess.Popen(
        [*command, "logs", "--follow", "--lines", "1", "valkey"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as follower:
        try:
            assert follower.stdout.readline() == "before\n"
            assert copy_and_truncate(log) == 7_000
            with log.open("a") as writer:
                writer.write("after\n")
            assert follower.stdout.readline() == "after\n"
        finally:
            follower.kill()


def test_every_process_appends_to_its_log(mesh):
    """Otherwise its next write after truncation would leave a hole of the old length."""
    appending = {}
    for name in mesh.processes:
        pid = mesh.pid(name)
        for member in proc.family(proc.identify(pid)) if pid else ():
            for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
                try:
                    if descriptor.readlink() != mesh.log(name):
                        continue
                    flags = Path(f"/proc/{member.pid}/fdinfo/{descriptor.name}").read_text()
                except OSError:
                    # The process ended, or closed the file, meanwhile.
                    continue
                octal = next(line.split()[1] for line in flags.splitlines() if "flags" in line)
                appending[name, member.pid, descriptor.name] = bool(int(octal, 8) & os.O_APPEND)

    assert {name for name, *_ in appending} == {name for name in mesh.processes if mesh.pid(name)}
    assert all(appending.values())
