"""The search for secrets finds planted ones, wherever a part stores them."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest
from kafka import KafkaProducer
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.feed.v1 import feed_service_pb2 as feed_pb
from photomesh.media.v1 import media_service_pb2 as media_pb

from tests.secrets import Secrets, watch

ROOT = Path(__file__).parents[2]
SECRET = 'p"ss\\wörd & 100% sécret\n'


@pytest.fixture
def used() -> Secrets:
    used = Secrets()
    used.add("password", SECRET)
    return used


@pytest.mark.parametrize(
    "written",
    [
        f"it is {SECRET} indeed",
        json.dumps({"password": SECRET}),
        json.dumps({"password": SECRET}, ensure_ascii=False),
        f"/v1/sessions?password={quote(SECRET, safe='')}&x",
        repr({"password": SECRET}),
        repr(SECRET.encode()),
    ],
    ids=["text", "JSON in ASCII", "JSON in UTF-8", "URL", "Python", "bytes in Python"],
)
def test_a_secret_is_found_however_it_is_written(used, tmp_path, written):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "file"
    path.write_bytes(b"\0\xff binary \n the line: " + written.encode() + b"\nanother")

    [found] = used.search(tmp_path)

    assert (found.kind, found.path) == ("password", path)
    assert "the line: " in found.line
    assert "100" not in found.line


def test_all_secrets_of_a_line_are_masked(used, tmp_path):
    used.add("token", "another-secret-token")
    (tmp_path / "x.log").write_text(f"one another-secret-token two {SECRET[:-1]} three")

    found = used.search(tmp_path)

    assert {each.kind for each in found} == {"password", "token"}
    assert {each.line for each in found} == {"one [...] two [...] three"}


def test_only_private_files_may_hold_keys(used, tmp_path):
    for folder, mode, is_found in (
        ("pki/account", 0o600, False),
        ("etc", 0o600, False),
        ("pki", 0o640, True),
        ("etc", 0o604, True),
        ("run", 0o600, True),
    ):
        path = tmp_path / folder / "key.pem"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
        path.chmod(mode)

        assert [found.path for found in used.search(tmp_path)] == [path] * is_found
        path.unlink()


@pytest.mark.parametrize(
    "text",
    [
        "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJwaG90b21lc2gifQ.pFQkSzSn3Yb1mHVbnqdFQkSzSn3Yb1mHVbnqd",
        "PUT /bucket/x?X-Amz-Signature=0123456789abcdef0123456789abcdef",
        "postgresql://account:hunter2@127.0.0.1/photomesh",
        "$argon2id$v=19$m=19456",
        "-----BEGIN PRIVATE KEY-----",
        "ALTER ROLE x PASSWORD 'SCRAM-SHA-256$4096:abc'",
    ],
)
def test_logs_hold_nothing_that_looks_like_a_secret(tmp_path, text):
    for name in ("part.log", "part.log.1", "original.jpg"):
        (tmp_path / name).write_text(f'{{"event":"{text}"}}')

    found = {finding.path.name for finding in Secrets().search(tmp_path)}

    assert found == {"part.log", "part.log.1"}
    for name in found:
        # Otherwise the whole test run would fail.
        (tmp_path / name).unlink()


def test_plain_logs_are_not_reported(tmp_path, used):
    lines = (
        '{"address":"http://127.0.0.1:8333/bucket","trace":"0af7651916cd43dd8448eb211c80319c"}',
        "2026-11-25 10:00:00 connection to postgresql://127.0.0.1:5432/photomesh failed",
        "redis://127.0.0.1:6379/0 at 12:30: reader@example.org",
    )
    (tmp_path / "part.log").write_text("\n".join(lines))

    assert used.search(tmp_path) == []


async def test_secrets_that_clients_send_and_receive_are_recorded():
    used = Secrets()
    token = secrets.token_urlsafe(20)
    answer = {
        "session": {"accessToken": f"a{token}", "refreshToken": f"r{token}"},
        "nextPageToken": f"n{token}",
        "media": [{"url": f"http://cdn/x.jpg?token=c{token}", "name": "w600"}],
        "uploadUrl": f"http://s3/b?X-Amz-Signature=u{token}&X-Amz-Date=20261125T000000Z",
        "formFields": {"key": f"k{token}", "policy": f"p{token}", "x-amz-signature": f"x{token}"},
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    with watch(used):
        async with httpx.AsyncClient(transport=transport) as http:
            await http.post(
                "http://gateway/v1/accounts?pageToken=" + f"q{token}",
                json={"username": f"name-{token}", "password": f"w{token}"},
                headers={"authorization": f"Bearer b{token}"},
            )

    known = {secret.decode() for secret in used.kinds}
    assert known == {f"{letter}{token}" for letter in "arncupxqwb"}


async def test_marked_fields_of_messages_are_recorded():
    used = Secrets()
    token = secrets.token_urlsafe(20)
    page = feed_pb.GetFeedResponse(next_page_token=f"n{token}")
    page.posts.add(caption=f"t{token}").media.add().variants.add(url=f"http://cdn/?token=c{token}")
    used.add_message(page)
    used.add_message(account_pb.CreateAccountRequest(username=f"u{token}", password=f"w{token}"))
    used.add_message(media_pb.CreateUploadResponse(form_fields={"policy": f"p{token}"}))

    assert {secret.decode() for secret in used.kinds} == {f"{letter}{token}" for letter in "ncwp"}


async def test_secrets_of_grpc_calls_are_recorded(mesh):
    import grpc
    from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub

    used = Secrets()
    password = secrets.token_urlsafe(20)
    with watch(used):
        address = f"127.0.0.1:{mesh.ports.gateway_http}"
        async with grpc.aio.insecure_channel(address) as channel:
            answer = await AccountServiceStub(channel).CreateAccount(
                account_pb.CreateAccountRequest(
                    username=f"noted.{secrets.token_hex(6)}", password=password
                )
            )

    assert {password, answer.session.access_token, answer.session.refresh_token} <= {
        secret.decode() for secret in used.kinds
    }


def test_the_keys_of_a_stack_are_recorded_and_in_private_files(stack):
    used = Secrets()
    used.add_stack(stack)

    assert set(used.kinds.values()) == {
        "database password",
        "S3 secret key",
        "cdn.key",
        "page.key",
        "private key",
    }
    # A copy that a test made would be found.
    copy = stack.layout.run / "copy"
    copy.write_text((stack.layout.pki / "token/key.pem").read_text())
    try:
        assert [found.kind for found in used.search(stack.layout.run)] == ["private key"]
    finally:
        copy.unlink()


def test_a_secret_in_a_table_is_found(infrastructure, database_of):
    used = Secrets()
    secret = secrets.token_urlsafe(20)
    used.add("token", secret)
    assert used.search(infrastructure.layout.state) == []

    url = database_of("media").database_url.get_secret_value()
    with psycopg.connect(url) as database:
        database.execute(
            """
            INSERT INTO dead_letters (topic, dlq_offset, bury_time, consumer_group, reason, payload,
                                      traceparent)
            VALUES ('media_uploaded', 1, now(), 'planted', %s, '', '')
            """,
            [f"ValueError: {secret}"],
        )

    found = used.search(infrastructure.layout.state)
    assert {each.path.relative_to(infrastructure.layout.data).parts[0] for each in found} == {
        "postgres"
    }


@pytest.fixture
def producer(infrastructure) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=infrastructure.kafka_bootstrap, acks="all")
    yield producer
    producer.close(timeout=5)


def test_a_secret_in_a_topic_is_found(infrastructure, producer):
    used = Secrets()
    secret = secrets.token_urlsafe(20)
    used.add("token", secret)
    # A topic without consumers.
    producer.send(
        "planted", value=b"an event", headers=[("dlq-reason", f"ValueError: {secret}".encode())]
    ).get(timeout=30)

    found = used.search(infrastructure.layout.state)
    assert {each.path.relative_to(infrastructure.layout.data).parts[0] for each in found} == {"s3"}


def test_a_run_that_writes_a_secret_fails(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.conftest import no_secret_is_written\n")
    (tmp_path / "test_planted.py").write_text(
        """
from tests.secrets import USED

def test_passes(tmp_path):
    USED.add("page token", "planted-page-token")
    (tmp_path / "part.log").write_text("the token is planted-page-token")
"""
    )

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            "PYTEST_DEBUG_TEMPROOT": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 passed, 1 error" in run.stdout
    assert run.returncode == 1
    assert "page token in" in run.stdout
    assert "part.log, 1 times: the token is [...]" in run.stdout
