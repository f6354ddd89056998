import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from deploy.local import proc
from deploy.local.diagnosis import State
from deploy.local.errors import PortTaken, ProcessDied, StackError
from deploy.local.ports import Ports, free_ports
from deploy.local.process import ROOT
from deploy.local.records import Records
from deploy.local.stack import Progress, Stack


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys to copy, because making them takes most of the time to create a stack."""
    folder = tmp_path_factory.mktemp("keys")
    Stack(folder, ports=Ports.block(18_000))
    return folder / "pki"


@pytest.fixture
def make_stack(tmp_path: Path, keys: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks with the same files and ports, as successive commands do."""
    ports = free_ports()
    shutil.copytree(keys, tmp_path / "pki")

    def make(**options) -> Stack:
        return Stack(tmp_path, **{"ports": ports, **options})

    yield make
    make(ephemeral=True).down()


def progress_of(stack: Stack, *names: str) -> dict[str, Progress]:
    latest: dict[str, Progress] = {}
    stack.up(names, report=lambda progress: latest.update({progress.name: progress}))
    return latest


def test_a_running_process_is_not_restarted(make_stack):
    make_stack().up(["valkey"])
    pid = make_stack().pid("valkey")

    assert progress_of(make_stack(), "valkey")["valkey"].detail == "already running"
    assert make_stack().pid("valkey") == pid


def test_a_dead_process_is_restarted(make_stack):
    stack = make_stack()
    stack.up(["valkey"])
    victim = proc.identify(stack.pid("valkey"))
    proc.kill([victim])

    assert {status.name: status.state for status in stack.status()}["valkey"] is State.DEAD
    assert progress_of(make_stack(), "valkey")["valkey"].detail == "had died"
    assert make_stack().pid("valkey") not in (victim.pid, None)


def test_a_changed_process_is_restarted_and_reported(make_stack):
    make_stack().up(["valkey"])
    pid = make_stack().pid("valkey")

    changed = make_stack(environment={"valkey": {"TZ": "Asia/Tokyo"}})

    assert progress_of(changed, "valkey")["valkey"].detail == "changed"
    assert changed.pid("valkey") != pid


def test_the_cache_restarts_empty(make_stack):
    stack = make_stack()
    stack.up(["valkey"])
    redis.Redis.from_url(stack.valkey_url).set("outdated", "yes")

    make_stack().down()
    make_stack().up(["valkey"])

    assert redis.Redis.from_url(stack.valkey_url).get("outdated") is None


def test_down_leaves_nothing_running(make_stack):
    stack = make_stack()
    stack.up(["valkey", "postgres"])
    families = [proc.family(proc.identify(stack.pid(name))) for name in ("valkey", "postgres")]
    assert len(families[1]) > 5, "PostgreSQL's own children count"

    stack.down()

    assert not any(member.is_alive() for family in families for member in family)
    assert {status.state for status in stack.status()} == {State.STOPPED}


def test_a_taken_port_is_named_with_its_holder(make_stack):
    stack = make_stack()
    with (
        socket.create_server(("127.0.0.1", stack.ports.valkey)),
        pytest.raises(PortTaken) as caught,
    ):
        stack.up(["valkey"])

    text = str(caught.value)
    assert f"port {stack.ports.valkey}, needed for Valkey of valkey" in text
    assert f"pid {os.getpid()} (" in text


def test_a_process_that_dies_is_named_with_the_end_of_its_log(make_stack):
    stack = make_stack()
    stack.log("valkey").write_text("an older line\n")
    (stack.layout.data / "valkey").write_text("a file where a folder must be")

    with pytest.raises(StackError, match="valkey"):
        stack.up(["valkey"])

    (stack.layout.data / "valkey").unlink()
    (stack.layout.data / "valkey").mkdir()
    (stack.layout.data / "valkey/dump.rdb").write_text("no snapshot")
    with pytest.raises(ProcessDied) as caught:
        stack.up(["valkey"])

    text = str(caught.value)
    assert "valkey exited with code 1" in text
    assert "Wrong signature" in text
    assert "an older line" not in text
    assert stack.pid("valkey") is None


def test_a_killed_process_restarts_with_its_data(make_stack):
    stack = make_stack(ephemeral=True)
    stack.up(["postgres"])
    before = stack.pid("postgres")
    with psycopg.connect(stack.superuser_url) as server:
        server.execute("CREATE TABLE kept ()")

    stack.kill("postgres")
    assert stack.pid("postgres") is None
    stack.start("postgres")

    assert stack.pid("postgres") not in (before, None)
    with psycopg.connect(stack.superuser_url) as server:
        assert server.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_an_unknown_process_name_is_refused_with_the_known_ones(make_stack):
    with pytest.raises(StackError, match=r"no process called feeds; choose from postgres, valkey"):
        make_stack().up(["feeds"])


def test_two_commands_cannot_change_one_stack_at_once(make_stack):
    stack = make_stack()
    with Records(stack.layout.run).lock(), pytest.raises(StackError, match=f"pid {os.getpid()}"):
        make_stack().up(["valkey"])


def test_an_ephemeral_stack_ends_with_its_creator_even_by_sigkill(make_stack, tmp_path):
    ports = dataclasses.asdict(make_stack().ports)
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(tmp_path), json.dumps(ports)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    pids = json.loads(maker.stdout.readline())
    processes = {proc.identify(pid) for pid in pids}
    assert None not in processes

    maker.kill()
    maker.communicate()

    assert proc.await_end(processes, seconds=10)


_MAKER = """
import json, sys, time
from pathlib import Path
from deploy.local.ports import Ports
from deploy.local.stack import Stack

stack = Stack(Path(sys.argv[1]), ports=Ports(**json.loads(sys.argv[2])), ephemeral=True)
stack.up(["valkey", "postgres"])
print(json.dumps([stack.pid("valkey"), stack.pid("postgres")]), flush=True)
time.sleep(600)
"""


def test_the_command_line_exits_with_1_if_a_process_is_not_healthy(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "deploy.local", "--state-dir", str(tmp_path), "status"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.returncode == 1
    assert "postgres" in shown.stdout
    assert "stopped" in shown.stdout
