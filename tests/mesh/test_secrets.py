"""No log contains a secret, whatever breaks while users sign up, sign in, refresh and upload.

With `PHOTOMESH_PROVE` each part breaks for longer, and alone.
"""

import asyncio
import contextlib
import json
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub

from deploy.local import proc
from deploy.local.stack import Stack
from tests.eventually import eventually
from tests.mesh.people import ApiError, Person
from tests.pictures import photo
from tests.secrets import USED

PROVING = "PHOTOMESH_PROVE" in os.environ
STALL_SECONDS = 15.0 if PROVING else 4.5
"""Longer than a service waits for a connection to its database."""
NEXT_SECONDS = 16.0 if PROVING else 1.5
"""The time between the starts of two stalls, in seconds."""
USERS = 9
"""More users than a service has database connections: some calls wait for one, and fail."""
FILE = photo(64, 48)
LINE_BYTES = 16 * 1024


def parts(mesh: Stack) -> list[str]:
    """Returns every process that is not a task, PostgreSQL first."""
    return [process.name for process in mesh.processes.values() if process.ready is not None]


class Users:
    """Users who repeat every call that sends or returns a secret, and count the failures."""

    def __init__(self, mesh: Stack, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self._mesh = mesh
        self._http = http
        self._channel = channel
        self._media = MediaServiceStub(channel)
        self.succeeded = 0
        self.failed = 0

    async def prepare(self) -> None:
        """Makes a user whose feed has several pages of photos, and makes each call once."""
        self._reader = await Person(self._http, patience=30).sign_up()
        author = await Person(self._http, patience=30).sign_up()
        await self._reader.follow(author)
        media_id = await author.upload(FILE)
        await author.processed(media_id)
        for _ in range(3):
            await author.post(media_id)
        page = await eventually(
            lambda: self._reader.feed(pageSize=1), lambda page: page["nextPageToken"], within=60
        )
        self._page_token = page["nextPageToken"]
        self._picture = page["posts"][0]["media"][0]["variants"][0]["url"]
        self._pending = (await author.open_upload(len(FILE)))["media"]["mediaId"]
        self._author = author
        for action in self.actions:
            await action()

    @property
    def actions(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """The calls. None of them fails in a healthy mesh."""
        return (
            self._sign_up,
            self._upload_by_form,
            self._upload_in_parts,
            self._upload_by_grpc,
            self._upload_by_rest,
            self._sign_in,
            self._sign_in_oddly,
            self._refresh,
            self._read,
            self._watch,
            self.send_malformed_message,
        )

    async def run(self, rng: random.Random) -> None:
        """Makes one call after the other until it is cancelled."""
        while True:
            await self._attempt(rng.choice(self.actions))
            await asyncio.sleep(0.05)

    async def _attempt(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
            self.succeeded += 1
        except (ApiError, httpx.HTTPError, grpc.RpcError, json.JSONDecodeError):
            self.failed += 1

    async def _sign_up(self) -> None:
        self._newest = await Person(self._http).sign_up()

    async def _upload_by_form(self) -> None:
        someone = self._newest
        upload = await someone.open_upload(len(FILE))
        # First with a wrong signature, which S3 refuses and logs.
        forged = {**upload["formFields"], "x-amz-signature": secrets.token_hex(32)}
        USED.add("forged signature", forged["x-amz-signature"])
        await someone.send_file({**upload, "formFields": forged}, FILE)
        await someone.send_file(upload, FILE)
        await someone.complete(upload["media"]["mediaId"])

    async def _upload_in_parts(self) -> None:
        someone = self._newest
        opened = await someone.call(
            "POST",
            "/v1/media/multipart",
            {"contentType": "image/jpeg", "sizeBytes": str(len(FILE))},
        )
        path = f"/v1/media/{opened['media']['mediaId']}"
        signed = await someone.call("POST", f"{path}/parts:sign", {"partNumbers": [1]})
        for file in (FILE[1:], FILE):
            await self._http.put(signed["parts"][0]["url"], content=file)
        await someone.call("POST", f"{path}:complete", {})

    async def _upload_by_grpc(self) -> None:
        request = media_pb.UploadMediaRequest(size_bytes=len(FILE), request_id=secrets.token_hex(8))
        request.file.content_type = "image/jpeg"
        request.file.data = FILE
        await self._media.UploadMedia(iter([request]), metadata=bearer(self._newest), timeout=8)

    async def _upload_by_rest(self) -> None:
        answer = await self._http.post(
            "/v1/media:upload", content=FILE, headers=dict(bearer(self._newest))
        )
        if answer.is_error:
            raise ApiError(answer)

    async def _sign_in(self) -> None:
        right = {"username": self._author.username, "password": self._author.password}
        await self._author.call("POST", "/v1/sessions", right)
        wrong = {**right, "password": secrets.token_urlsafe(18)}
        with contextlib.suppress(ApiError):
            await self._author.call("POST", "/v1/sessions", wrong)

    async def _sign_in_oddly(self) -> None:
        secret = secrets.token_urlsafe(18)
        USED.add("password", secret)
        name = self._author.username
        odd = (
            {"username": f"{name}\0", "password": secret},
            {"username": name, "password": f"{secret}\0{secret}"},
            {"username": name, "password": f'{secret}"\\\n'},
            {"username": name, "password": [secret]},
            {"username": 7, "password": secret},
            {"username": name, "passwort": secret},
            {"username": f"{name}'; --", "password": secret},
            {"username": name, "password": secret * 9},
            f'{{"username": "{name}", "password": "{secret}',
            f'{{"username": "{name}", "password": "\ud800{secret}"}}',
        )
        for path in ("/v1/sessions", "/v1/accounts"):
            for body in odd:
                text = body if isinstance(body, str) else json.dumps(body)
                await self._http.post(path, content=text.encode(errors="surrogatepass"))
            await self._http.post(path, params={"password": secret}, json={"username": name})

    async def _refresh(self) -> None:
        someone = Person(self._http)
        answer = await someone.call(
            "POST",
            "/v1/accounts",
            {"username": someone.username, "password": someone.password},
        )
        old = answer["session"]["refreshToken"]
        for token in (old, old, f"{old}\0", old[:-4] + "AAAA"):
            USED.add("refresh token", token)
            with contextlib.suppress(ApiError):
                await someone.call("POST", "/v1/sessions:refresh", {"refreshToken": token})

    async def _read(self) -> None:
        await self._reader.feed(pageSize=1, pageToken=self._page_token)
        for path, token in (
            ("/v1/feed", self._page_token[:-4] + "AAAA"),
            (f"/v1/accounts/{self._author.account_id}/followers", self._page_token),
        ):
            USED.add("page token", token)
            await self._http.get(
                path, params={"pageToken": token}, headers=dict(bearer(self._reader))
            )
        for url in (
            self._picture,
            self._picture[:-4] + "AAAA",
            self._picture.replace("/media/", "/media/x"),
        ):
            await self._http.get(url)
        for token in (f"{self._reader.token[:-4]}AAAA", f"{self._reader.token}\u00e9"):
            headers = [(b"authorization", f"Bearer {token}".encode())]
            await self._http.get("/v1/feed", headers=headers)

    async def _watch(self) -> None:
        for path in ("/v1/feed:watch?afterPostId=1", f"/v1/media/{self._pending}:watch"):
            watched = self._http.stream("GET", path, headers=dict(bearer(self._author)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1), watched as answer:
                    async for line in answer.aiter_lines():
                        USED.add_json(line.encode())

    async def send_malformed_message(self) -> None:
        """Sends a valid message of a stream, and then a malformed one."""
        send = self._channel.stream_unary(
            "/photomesh.media.v1.MediaService/UploadMedia",
            request_serializer=lambda message: message,
            response_deserializer=lambda message: message,
        )
        first = media_pb.UploadMediaRequest(size_bytes=2**22, request_id=secrets.token_hex(8))
        first.file.content_type = "image/jpeg"
        first.file.data = bytes(2**18)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await send(
                iter([first.SerializeToString(), b"\xff\xff"]),
                metadata=bearer(self._newest),
                timeout=8,
            )


def bearer(someone: Person) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {someone.token}"),)


@pytest.fixture
async def users(mesh: Stack) -> AsyncIterator[Users]:
    address = f"127.0.0.1:{mesh.ports.gateway_http}"
    async with (
        httpx.AsyncClient(base_url=f"http://{address}", timeout=8) as http,
        grpc.aio.insecure_channel(address) as channel,
    ):
        users = Users(mesh, http, channel)
        await users.prepare()
        yield users


@contextlib.asynccontextmanager
async def busy(users: Users) -> AsyncIterator[None]:
    """Lets the users make calls during the block."""
    tasks = [asyncio.create_task(users.run(random.Random(number))) for number in range(USERS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == []


async def stall_each(mesh: Stack, users: Users) -> None:
    """Stalls each part for a while, several at a time; PostgreSQL until calls fail."""

    async def stall(name: str) -> None:
        with mesh.stalled(name):
            await asyncio.sleep(STALL_SECONDS)
            if name == "postgres":
                await eventually(lambda: _has_failed_since(users, 0))

    async with asyncio.TaskGroup() as group:
        for name in parts(mesh):
            group.create_task(stall(name))
            await asyncio.sleep(NEXT_SECONDS)


async def crash_each(mesh: Stack, users: Users) -> None:
    """Kills and restarts each part in turn, dependents before their dependencies."""
    for name in reversed(parts(mesh)):
        before = users.failed
        await asyncio.to_thread(mesh.kill, name)
        if name == "postgres":
            # Calls fail without it, and services log the errors.
            await eventually(lambda before=before: _has_failed_since(users, before))
        await asyncio.to_thread(mesh.start, name)


async def _has_failed_since(users: Users, before: int) -> bool:
    """Returns whether there were more than `before` failures."""
    return users.failed > before


@pytest.mark.parametrize("break_each", [stall_each, crash_each])
async def test_no_secret_is_written_while_a_part_breaks(mesh, users, break_each):
    logs = {path: path.stat().st_size for path in mesh.layout.log.iterdir()}
    async with busy(users):
        await break_each(mesh, users)
    # By then, late log lines are written, too.
    await eventually(users.prepare, lambda _: True)

    assert users.succeeded
    assert users.failed
    written = {path: new_lines(path, logs.get(path, 0)) for path in mesh.layout.log.iterdir()}
    if break_each is crash_each:
        # Errors were logged with their tracebacks.
        assert any(b'"exception":' in line for lines in written.values() for line in lines)
    assert {path.name: max(map(len, lines)) for path, lines in written.items() if lines} == {
        path.name: pytest.approx(0, abs=LINE_BYTES) for path, lines in written.items() if lines
    }
    found = await asyncio.to_thread(USED.search, mesh.layout.state)
    assert not found, "\n".join(map(str, found))


async def test_a_malformed_message_writes_little_to_the_log(mesh, users):
    log = mesh.log("media")
    before = log.stat().st_size

    await users.send_malformed_message()
    # When later calls are answered, its log lines are written.
    await users.prepare()

    assert log.stat().st_size - before < 4 * LINE_BYTES


def test_no_process_is_given_a_secret_as_an_argument(mesh):
    running = [
        Path(f"/proc/{member.pid}/cmdline").read_bytes()
        for name in parts(mesh)
        for member in proc.family(proc.identify(mesh.pid(name)))
    ]
    commands = running + [
        "\0".join(process.command).encode() for process in mesh.processes.values()
    ]

    assert len(running) >= len(parts(mesh))
    assert {
        kind for command in commands for secret, kind in USED.kinds.items() if secret in command
    } == set()


def new_lines(path: Path, offset: int) -> list[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().splitlines()
