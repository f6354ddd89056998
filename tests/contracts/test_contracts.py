"""The contracts are linted, generated code is up to date, and every error reason is used."""

import filecmp
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from photomesh.common.v1 import options_pb2
from photomesh.common.v1.error_reason_pb2 import ErrorReason

from services.chassis import contracts

ROOT = Path(__file__).parents[2]
# Services without REST paths.
_INSIDE = ("InternalService", "AdminService", "DeadLetterService")
BUF = Path(sysconfig.get_path("scripts")) / "buf"


def buf(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, *arguments],
        cwd=ROOT,
        env={**os.environ, "BUF_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def files_below(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_up_to_date(tmp_path):
    subprocess.run([sys.executable, ROOT / "protos/generate.py", tmp_path], check=True)

    made, committed = files_below(tmp_path), files_below(ROOT / "gen")
    assert made == committed, "run `make gen`"
    _, different, unreadable = filecmp.cmpfiles(
        tmp_path, ROOT / "gen", [str(path) for path in made], shallow=False
    )
    assert (different, unreadable) == ([], []), "run `make gen`"


def test_buf_lint_passes(tmp_path):
    lint = buf(tmp_path, "lint", "gen/photomesh.binpb")

    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_buf_detects_a_breaking_change(tmp_path):
    image = contracts.files()
    [feed] = [f for f in image.file if f.name == "photomesh/feed/v1/feed_service.proto"]
    del feed.service[0].method[0]
    (tmp_path / "changed.binpb").write_bytes(image.SerializeToString())

    same = buf(tmp_path, "breaking", "gen/photomesh.binpb", "--against", "gen/photomesh.binpb")
    changed = buf(
        tmp_path, "breaking", f"{tmp_path}/changed.binpb", "--against", "gen/photomesh.binpb"
    )

    assert same.returncode == 0, same.stdout + same.stderr
    assert "GetFeed" in changed.stdout


def test_public_and_internal_methods_are_in_different_services():
    image = contracts.files()
    for file in image.file:
        for service in file.service:
            for method in service.method:
                has_rest_path = method.options.HasExtension(annotations_pb2.http)
                inside = service.name.endswith(_INSIDE)
                assert has_rest_path != inside, method.name


def test_every_listed_error_reason_is_used():
    sources = "\n".join(
        path.read_text()
        for folder in ("services", "gateway")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua")
    )

    for name in ErrorReason.keys()[1:]:
        assert f'"{name.removeprefix("ERROR_REASON_")}"' in sources, name


def test_every_event_declares_a_topic_of_its_own_and_an_int64_key():
    image = contracts.files()
    topics = []
    for file in image.file:
        for message in file.message_type:
            is_event = file.name.endswith("/events.proto")
            assert message.options.HasExtension(options_pb2.topic) == is_event, message.name
            if is_event:
                topic = message.options.Extensions[options_pb2.topic]
                topics.append(topic.name)
                keys = [field for field in message.field if field.name == topic.key]
                assert [key.type for key in keys] == [
                    descriptor_pb2.FieldDescriptorProto.TYPE_INT64
                ], message.name

    assert topics
    assert all(topics)
    assert len(set(topics)) == len(topics)
