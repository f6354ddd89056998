import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import proc

# A leader that starts a child in its own session, names it, and waits.
_WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
# A process whose first thread ends while another one runs.
_HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


class Started:
    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
        )
        self.said = self.process.stdout.readline().decode().strip()
        self.identity = proc.identify(self.process.pid)


@pytest.fixture
def start() -> Iterator[type[Started]]:
    started = []

    def start(code: str) -> Started:
        started.append(Started(code))
        return started[-1]

    yield start
    for one in started:
        proc.kill(proc.family(one.identity))
        one.process.kill()
        one.process.communicate()


def test_a_reused_pid_is_not_killed(start):
    living = start(_WITH_CHILD)
    former = dataclasses.replace(living.identity, started=living.identity.started - 1)
    before_the_reboot = dataclasses.replace(living.identity, boot="another")

    for stranger in (former, before_the_reboot):
        assert not stranger.is_alive()
        assert proc.family(stranger) == set()
        proc.send(stranger, signal.SIGKILL)
        proc.end(stranger, signum=signal.SIGTERM, seconds=1)

    assert living.identity.is_alive()


def test_a_zombie_is_not_alive(start):
    started = start("import time; print('ready', flush=True); time.sleep(600)")
    started.process.kill()

    assert proc.await_end([started.identity], seconds=60)
    assert proc.identify(started.process.pid) is None


def test_a_zombie_with_running_threads_is_alive(start):
    started = start(_HEADLESS)
    status = Path(f"/proc/{started.process.pid}/status")
    deadline = time.monotonic() + 5
    while "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert started.identity.is_alive()
    proc.kill([started.identity])
    assert "Threads:\t1" in status.read_text()


def test_children_end_with_their_leader(start):
    leader = start(_WITH_CHILD)
    child = proc.identify(int(leader.said))

    assert proc.end(leader.identity, signum=signal.SIGTERM, seconds=5)

    assert not child.is_alive()


def test_children_that_outlived_a_killed_leader_are_found(start):
    leader = start(_WITH_CHILD)
    child = proc.identify(int(leader.said))
    leader.process.kill()
    leader.process.wait()

    assert proc.family(leader.identity) == {child}


def test_a_process_that_does_not_end_in_time_is_killed(start):
    stubborn = start(_STUBBORN)
    began = time.monotonic()

    assert not proc.end(stubborn.identity, signum=signal.SIGTERM, seconds=0.2)

    assert time.monotonic() - began < 5
    assert not stubborn.identity.is_alive()
