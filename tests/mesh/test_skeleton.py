"""A new service is one folder of contracts, one folder of code and one row.

The skeleton that `make service` writes runs in a copy of the tree without other changes.
"""

import asyncio
import filecmp
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from kafka import KafkaProducer
from photomesh.common.v1 import dead_letter_service_pb2 as letters_pb
from photomesh.common.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

from deploy.local.process import ROOT
from services.chassis.rpc import client
from tests.callers import Refusal
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.people import Person

NAME = "widget"
COUNT = "/photomesh.widget.v1.WidgetInternalService/CountWidgets"

# The files that may differ from the tree: those of the service, its row, and generated code.
WRITTEN = {
    "deploy/processes.py",
    "gen/photomesh.binpb",
    *(
        f"gen/photomesh/{NAME}/v1/{contract}_pb2{ending}"
        for contract in (f"{NAME}_service", f"{NAME}_internal_service")
        for ending in (".py", ".pyi", "_grpc.py", "_grpc.pyi")
    ),
    f"gen/photomesh/{NAME}/v1/events_pb2.py",
    f"gen/photomesh/{NAME}/v1/events_pb2.pyi",
    f"protos/photomesh/{NAME}/v1/events.proto",
    f"protos/photomesh/{NAME}/v1/{NAME}_internal_service.proto",
    f"protos/photomesh/{NAME}/v1/{NAME}_service.proto",
    *(
        f"services/{NAME}/{room}.py"
        for room in ("__init__", "__main__", "config", "events", "internal", "service", "store")
    ),
    f"services/{NAME}/migrations/0001.{NAME}s.sql",
}

_UP = """
import json, sys
from pathlib import Path
from deploy.local.ports import free_ports
from deploy.local.stack import Stack

with Stack(Path(sys.argv[1]), ports=free_ports(), ephemeral=True) as stack:
    stack.up(timeout=float(sys.argv[2]))
    print(json.dumps({
        "pki": str(stack.layout.pki),
        "gateway": f"http://127.0.0.1:{stack.ports.gateway_http}",
        "address": stack.ports.address(sys.argv[3]),
        "kafka": stack.kafka_bootstrap,
        "log": str(stack.log(sys.argv[3])),
        "status": {each.name: each.state for each in stack.status()},
    }), flush=True)
    sys.stdin.read()
"""


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the tree with the skeleton and its generated code."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    run(tree, "-m", "deploy.skeleton", NAME)
    run(tree, "protos/generate.py")
    yield tree
    # Removed, because the files of a run are searched for secrets, and tests contain some.
    shutil.rmtree(tree)


def run(tree: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={"PYTHONPATH": f"{tree}:{tree / 'gen'}", "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Up:
    """A running mesh from the copy."""

    pki: str
    gateway: str
    address: str
    kafka: str
    log: str
    status: dict[str, str]

    def channel(self, identity: str) -> grpc.aio.Channel:
        return client.channel(NAME, self.address, Path(self.pki) / identity)


@pytest.fixture(scope="module")
def up(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    state = tmp_path_factory.mktemp("state")
    process = subprocess.Popen(
        [sys.executable, "-c", _UP, str(state), str(PATIENCE_SECONDS), NAME],
        cwd=tree,
        env={"PYTHONPATH": f"{tree}:{tree / 'gen'}", "PATH": str(Path(sys.executable).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        addresses = process.stdout.readline()
        assert addresses, "the mesh did not start"
        yield Up(**json.loads(addresses))
    finally:
        process.communicate()


def test_no_other_file_is_written(tree):
    files = {
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    known = set(tracked())
    _, changed, _ = filecmp.cmpfiles(tree, ROOT, files & known, shallow=False)

    assert known <= files
    assert (files - known) | set(changed) == WRITTEN


def test_the_skeleton_passes_the_lint_rules(tree):
    scripts = Path(sys.executable).parent
    for command in (
        [
            scripts / "ruff",
            "check",
            "--quiet",
            "--no-cache",
            f"services/{NAME}",
            "deploy/processes.py",
        ],
        [scripts / "ruff", "format", "--check", "--quiet", "--no-cache", f"services/{NAME}"],
        [scripts / "lint-imports", "--no-logo"],
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contracts"],
    ):
        done = subprocess.run(
            command,
            cwd=tree,
            env={"PYTHONPATH": f"{tree}:{tree / 'gen'}", "PATH": f"{scripts}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


async def test_the_skeleton_answers_and_handles_its_event(up):
    async with httpx.AsyncClient(base_url=up.gateway, timeout=PATIENCE_SECONDS) as http:
        someone = await Person(http, patience=PATIENCE_SECONDS).sign_up()
        made = (await someone.call("POST", f"/v1/{NAME}s", {"text": "hello"}))[NAME]

        async def listed() -> Any:
            return (await someone.call("GET", f"/v1/{NAME}s"))[f"{NAME}s"]

        # Its event went through the outbox and the broker to its own consumer.
        [seen] = await eventually(listed, lambda found: found[0]["handled"])
        assert seen == made | {"handled": True}

        assert up.status[NAME] == "ready"
        log = await asyncio.to_thread(Path(up.log).read_text)
        assert any(
            json.loads(line)["service"] == NAME for line in log.splitlines() if line[:1] == "{"
        )

        # int64 owner_id = 1, as it is on the wire.
        request = b"\x08" + _varint(someone.account_id)
        async with up.channel("feed") as feed:
            assert await feed.unary_unary(COUNT)(request, timeout=PATIENCE_SECONDS) == b"\x08\x01"
        async with up.channel("post") as post:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await post.unary_unary(COUNT)(request, timeout=PATIENCE_SECONDS)
        assert Refusal.of(refused.value).reason == "CALLER_NOT_ALLOWED"

        outside = await http.post(COUNT, headers={"authorization": f"Bearer {someone.token}"})
        assert outside.status_code == 404


async def test_an_event_that_cannot_be_handled_becomes_a_dead_letter(up):
    producer = KafkaProducer(bootstrap_servers=up.kafka, acks="all")
    try:
        sent = producer.send(f"{NAME}_created", b"\xff\xff", key=b"1")
        await asyncio.to_thread(sent.get, PATIENCE_SECONDS)
    finally:
        producer.close()

    async with up.channel("operator") as operator:
        dead_letters = DeadLetterServiceStub(operator)

        async def listed() -> Any:
            return (await dead_letters.ListDeadLetters(letters_pb.ListDeadLettersRequest())
                    ).dead_letters  # fmt: skip

        [letter] = await eventually(listed)
    assert (letter.topic, letter.consumer_group) == (f"{NAME}_created", NAME)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def test_an_invalid_name_is_refused_and_nothing_is_written(tree):
    before = {path for path in tree.rglob("*") if path.is_file()}
    for name in ("Widget", "media", NAME, "../x", "w", ""):
        done = subprocess.run(
            [sys.executable, "-m", "deploy.skeleton", name],
            cwd=tree,
            env={"PYTHONPATH": f"{tree}:{tree / 'gen'}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
    assert {path for path in tree.rglob("*") if path.is_file()} == before
