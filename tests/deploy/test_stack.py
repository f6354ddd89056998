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
    """Keys to copy: making them takes most of a stack's birth."""
    folder = tmp_path_factory.mktemp("keys")
    Stack(folder, ports=Ports.block(18_000))
    return folder / "pki"


@pytest.fixture
def make_stack(tmp_path: Path, keys: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks over the same files and ports, as one command after the other does."""
    ports = free_ports()
    shutil.copytree(keys, tmp_path / "pki")

    def make(**options) -> Stack:
        return Stack(tmp_path, **{"ports": ports, **options})

    yield make
    make(ephemeral=True).down()


def heard(stack: Stack, *names: str) -> dict[str, Progress]:
    latest: dict[str, Progress] = {}
    stack.up(names, report=lambda progress: latest.update({progress.name: progress}))
    return latest


def test_what_runs_is_left_alone(make_stack):
    make_stack().up(["valkey"])
    pid = make_stack().pid("valkey")

    assert heard(make_stack(), "valkey")["valkey"].detail == "already running"
    assert make_stack().pid("valkey") == pid


def test_what_died_is_started_again(make_stack):
    stack = make_stack()
    stack.up(["valkey"])
    victim = proc.identify(stack.pid("valkey"))
    proc.kill([victim])

    assert {status.name: status.state for status in stack.status()}["valkey"] is State.DEAD
    assert heard(make_stack(), "valkey")["valkey"].detail == "had died"
    assert make_stack().pid("valkey") not in (victim.pid, None)


def test_what_changed_is_started_again_and_said_so(make_stack):
    make_stack().up(["valkey"])
    pid = make_stack().pid("valkey")

    changed = make_stack(environment={"valkey": {"TZ": "Asia/Tokyo"}})

    assert heard(changed, "valkey")["valkey"].detail == "changed"
    assert changed.pid("valkey") != pid


def test_the_cache_comes_back_empty_and_never_as_it_once_was(make_stack):
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

    said = str(caught.value)
    assert f"port {stack.ports.valkey}, needed for Valkey of valkey" in said
    assert f"pid {os.getpid()} (" in said


def test_a_process_that_dies_is_named_with_the_end_of_its_log(make_stack):
    stack = make_stack()
    stack.log("valkey").write_text("an older life\n")
    (stack.layout.data / "valkey").write_text("a file where a folder must be")

    with pytest.raises(StackError, match="valkey"):
        stack.up(["valkey"])

    (stack.layout.data / "valkey").unlink()
    (stack.layout.data / "valkey").mkdir()
    (stack.layout.data / "valkey/dump.rdb").write_text("no snapshot")
    with pytest.raises(ProcessDied) as caught:
        stack.up(["valkey"])

    said = str(caught.value)
    assert "valkey exited with code 1" in said
    assert "Wrong signature" in said
    assert "an older life" not in said
    assert stack.pid("valkey") is None


def test_a_killed_process_starts_again_over_its_data(make_stack):
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


def test_a_name_that_is_not_there_is_refused_with_those_that_are(make_stack):
    with pytest.raises(StackError, match=r"no process called feeds; choose from postgres, valkey"):
        make_stack().up(["feeds"])


def test_two_commands_do_not_work_on_one_stack_at_once(make_stack):
    stack = make_stack()
    with Records(stack.layout.run).lock(), pytest.raises(StackError, match=f"pid {os.getpid()}"):
        make_stack().up(["valkey"])


def test_an_ephemeral_stack_ends_with_its_maker_even_by_sigkill(make_stack, tmp_path):
    ports = dataclasses.asdict(make_stack().ports)
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(tmp_path), json.dumps(ports)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    said = json.loads(maker.stdout.readline())
    processes = {proc.identify(pid) for pid in said}
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


def test_the_command_line_ends_with_1_when_something_is_not_healthy(tmp_path):
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
