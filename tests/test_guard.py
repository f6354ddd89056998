"""Processes that tests start end with the test run."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.local import proc
from tests.eventually import PATIENCE_SECONDS
from tests.guard import RUN, processes_of


@contextmanager
def started(run: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a session of its own, as part of a test run."""
    with subprocess.Popen(
        command,
        env={**os.environ, RUN: run},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_processes_end_with_their_run_but_guards_of_stacks_end_by_themselves(tmp_path):
    run, other_run = secrets.token_hex(8), secrets.token_hex(8)
    parent = ("bash", "-c", "sleep 600 & echo ready; wait")
    with (
        started(run, *parent) as ours,
        started(other_run, *parent) as theirs,
        started(run, sys.executable, "-m", "deploy.local.guard", str(tmp_path)) as of_a_stack,
        started(run, sys.executable, "-m", "tests.guard", run) as guard,
    ):
        for process in (ours, theirs):
            assert process.stdout.readline() == b"ready\n"
        assert {proc.identify(ours.pid)} < processes_of(run)

        # As the kernel does when the process at the other end has died.
        guard.stdin.close()

        assert guard.wait(PATIENCE_SECONDS) == 0
        assert processes_of(run) == set()
        assert ours.wait(PATIENCE_SECONDS) < 0
        assert theirs.poll() is None
        assert of_a_stack.poll() is None
        of_a_stack.stdin.close()
        assert of_a_stack.wait(PATIENCE_SECONDS) == 0
        proc.kill(processes_of(other_run))
