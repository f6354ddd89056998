"""Whatever breaks while people sign up, sign in, refresh and upload: no log tells their secrets.

With `PHOTOMESH_PROVE` each part is broken for longer, and alone.
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
"""After how long the next part breaks."""
CROWD = 9
"""More than a service has connections to its database: some calls wait for one, and fail."""
FILE = photo(64, 48)
LINE_BYTES = 16 * 1024


def parts(mesh: Stack) -> list[str]:
    """Returns every process that is not a task, PostgreSQL first."""
    return [process.name for process in mesh.processes.values() if process.ready is not None]


class Everybody:
    """People who do all that takes or gives a secret, over and over, whatever comes of it."""

    def __init__(self, mesh: Stack, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self._mesh = mesh
        self._http = http
        self._channel = channel
        self._media = MediaServiceStub(channel)
        self.succeeded = 0
        self.failed = 0

    async def prepare(self) -> None:
        """Has somebody whose feed has several pages, with pictures in them; does all once."""
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
        for deed in self.deeds:
            await deed()

    @property
    def deeds(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What they do; nothing of it fails while all is well."""
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
            self.send_nonsense,
        )

    async def live(self, rng: random.Random) -> None:
        """Does one thing after the other until it is cancelled."""
        while True:
            await self._attempt(rng.choice(self.deeds))
            await asyncio.sleep(0.05)

    async def _attempt(self, deed: Callable[[], Awaitable[None]]) -> None:
        try:
            await deed()
            self.succeeded += 1
        except (ApiError, httpx.HTTPError, grpc.RpcError, json.JSONDecodeError):
            self.failed += 1

    async def _sign_up(self) -> None:
        self._newest = await Person(self._http).sign_up()

    async def _upload_by_form(self) -> None:
        someone = self._newest
        upload = await someone.open_upload(len(FILE))
        # Once with a signature that is not right, which S3 refuses, and tells in its log.
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

    async def send_nonsense(self) -> None:
        """Sends a good message of a stream, and then one that is none."""
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
async def everybody(mesh: Stack) -> AsyncIterator[Everybody]:
    address = f"127.0.0.1:{mesh.ports.gateway_http}"
    async with (
        httpx.AsyncClient(base_url=f"http://{address}", timeout=8) as http,
        grpc.aio.insecure_channel(address) as channel,
    ):
        everybody = Everybody(mesh, http, channel)
        await everybody.prepare()
        yield everybody


@contextlib.asynccontextmanager
async def busy(everybody: Everybody) -> AsyncIterator[None]:
    """Has everybody live meanwhile."""
    lives = [asyncio.create_task(everybody.live(random.Random(number))) for number in range(CROWD)]
    try:
        yield
    finally:
        for life in lives:
            life.cancel()
        ends = await asyncio.gather(*lives, return_exceptions=True)
    assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == []


async def stall_each(mesh: Stack, everybody: Everybody) -> None:
    """Stalls each part for a while, several at a time; PostgreSQL until calls fail for it."""

    async def stall(name: str) -> None:
        with mesh.stalled(name):
            await asyncio.sleep(STALL_SECONDS)
            if name == "postgres":
                await eventually(lambda: _newer(everybody, 0))

    async with asyncio.TaskGroup() as group:
        for name in parts(mesh):
            group.create_task(stall(name))
            await asyncio.sleep(NEXT_SECONDS)


async def crash_each(mesh: Stack, everybody: Everybody) -> None:
    """Kills each part and starts it again, one after the other, those that need others first."""
    for name in reversed(parts(mesh)):
        before = everybody.failed
        await asyncio.to_thread(mesh.kill, name)
        if name == "postgres":
            # Calls fail without it, and services log why.
            await eventually(lambda before=before: _newer(everybody, before))
        await asyncio.to_thread(mesh.start, name)


async def _newer(everybody: Everybody, before: int) -> bool:
    """Tells whether calls have failed since."""
    return everybody.failed > before


@pytest.mark.parametrize("break_each", [stall_each, crash_each])
async def test_no_secret_is_written_while_a_part_breaks(mesh, everybody, break_each):
    logs = {path: path.stat().st_size for path in mesh.layout.log.iterdir()}
    async with busy(everybody):
        await break_each(mesh, everybody)
    # What was told late is written then, too.
    await eventually(everybody.prepare, lambda _: True)

    assert everybody.succeeded
    assert everybody.failed
    written = {path: new_lines(path, logs.get(path, 0)) for path in mesh.layout.log.iterdir()}
    if break_each is crash_each:
        # Errors were logged, with what led to them.
        assert any(b'"exception":' in line for lines in written.values() for line in lines)
    assert {path.name: max(map(len, lines)) for path, lines in written.items() if lines} == {
        path.name: pytest.approx(0, abs=LINE_BYTES) for path, lines in written.items() if lines
    }
    found = await asyncio.to_thread(USED.search, mesh.layout.state)
    assert not found, "\n".join(map(str, found))


async def test_a_message_that_is_none_costs_little_log(mesh, everybody):
    log = mesh.log("media")
    before = log.stat().st_size

    await everybody.send_nonsense()
    # Whatever it led to has been told when a later call is answered.
    await everybody.prepare()

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
