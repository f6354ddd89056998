"""Files as raw bodies of REST requests, through the gateway."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from deploy.local.addresses import ORIGINALS_BUCKET
from services.chassis.database.ids import created_at
from services.media.limits import LIMITS
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.mesh.people import ApiError, Person
from tests.pictures import photo

pytestmark = pytest.mark.prove

MIB = 2**20

# `make prove` sends large files, and cuts more often.
PROVING = bool(os.environ.get("PHOTOMESH_PROVE"))
SIZES = [1, 5 * MIB - 1, 5 * MIB, 16 * MIB] + ([32 * MIB, 300 * MIB] if PROVING else [])
CUTS = 10 if PROVING else 2


@pytest.fixture
async def author(person) -> Person:
    return await person().sign_up()


@pytest.fixture
def stored(mesh):
    """Returns the SHA-256 of the original in S3."""
    s3 = mesh.s3()

    def read(media) -> str:
        day = created_at(int(media["mediaId"])).strftime("%Y/%m/%d")
        key = f"{day}/{media['ownerId']}/{media['mediaId']}/original"
        body = s3.get_object(Bucket=ORIGINALS_BUCKET, Key=key)["Body"]
        return hashlib.sha256(body.read()).hexdigest()

    return lambda media: asyncio.to_thread(read, media)


async def chunked(file: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(file), 300_000):
        yield file[at : at + 300_000]


async def put(author: Person, content, content_type="", **query) -> dict:
    headers = {"authorization": f"Bearer {author.token}"}
    if content_type:
        headers["content-type"] = content_type
    answer = await author.http.post(
        "/v1/media:upload", content=content, params=query, headers=headers, timeout=PATIENCE_SECONDS
    )
    if answer.is_error:
        raise ApiError(answer)
    return answer.json()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["whole", "chunked"])
async def test_every_byte_arrives(author, stored, size, form):
    file = b"?" + os.urandom(size - 1)

    answer = await put(author, file if form == "whole" else chunked(file))

    assert await stored(answer["media"]) == hashlib.sha256(file).hexdigest()


async def test_a_photo_sent_as_a_body_becomes_ready(author):
    file = photo(640, 480)

    answer = await put(
        author,
        file,
        "image/jpeg",
        requestId="one",
        sizeBytes=len(file),
        sha256=hashlib.sha256(file).hexdigest(),
    )

    media = await author.processed(answer["media"]["mediaId"])
    assert media["state"] == "MEDIA_STATE_READY"
    # The same request again, and the same bytes with another request id.
    assert (await put(author, file, "image/jpeg", requestId="one"))["media"] == media
    again = await put(author, b"", "image/jpeg", sha256=hashlib.sha256(file).hexdigest())
    assert again["reused"]
    assert again["media"] == media


async def test_parallel_repeats_of_a_request_make_one_media(author, stored):
    file = os.urandom(50_000)

    answers = await asyncio.gather(
        *(put(author, file, requestId="one") for _ in range(LIMITS.streams_per_account))
    )

    assert len({answer["media"]["mediaId"] for answer in answers}) == 1
    assert await stored(answers[0]["media"]) == hashlib.sha256(file).hexdigest()


@pytest.mark.parametrize(
    ("content", "content_type", "query", "status", "reason"),
    [
        (b"", "", {}, 400, "FIELD_INVALID"),
        (b"abc", "", {"sizeBytes": 2}, 400, "FIELD_INVALID"),
        (b"abc", "", {"sizeBytes": 4}, 400, "OBJECT_MISSING"),
        (b"abc", "", {"sha256": "abc"}, 400, "FIELD_INVALID"),
        (b"abc", "", {"sha256": "0" * 64}, 400, "OBJECT_MISMATCH"),
        (b"abc", "", {"colour": "red"}, 400, "REQUEST_MALFORMED"),
        (photo(8, 8), "image/png", {}, 400, "OBJECT_MISMATCH"),
    ],
)
async def test_a_file_that_differs_from_its_declaration_is_refused(
    author, content, content_type, query, status, reason
):
    with pytest.raises(ApiError) as refused:
        await put(author, content, content_type, **query)

    assert (refused.value.status, refused.value.reason) == (status, reason)


async def test_an_upload_without_a_token_is_refused(http):
    answer = await http.post("/v1/media:upload", content=b"abc")

    assert answer.status_code == 401


async def test_an_interrupted_body_resumes_at_the_stored_offset(author, stored):
    file = os.urandom(SIZES[-1])
    query = {"requestId": "one", "sizeBytes": len(file), "sha256": hashlib.sha256(file).hexdigest()}

    async def offset() -> int:
        return int((await author.call("GET", "/v1/media:offset", requestId="one"))["offset"])

    at = 0
    for _ in range(CUTS):
        end = random.randint(min(at + 14 * MIB, len(file)), len(file))

        async def broken(at=at, end=end) -> AsyncIterator[bytes]:
            async for piece in chunked(file[at:end]):
                yield piece
            raise ConnectionAbortedError

        with pytest.raises(ConnectionAbortedError):
            await put(author, broken(), offset=at, **query)
        # Bytes in transit to S3 still arrive.
        at = await eventually(offset, lambda now, at=at, end=end: now > at or end == len(file))

    answer = await put(author, file[at:], offset=at, **query)

    assert await stored(answer["media"]) == query["sha256"]
    assert await offset() == len(file)


@asynccontextmanager
async def begun_body(
    author: Person,
) -> AsyncIterator[tuple[asyncio.Task[httpx.Response], asyncio.StreamWriter]]:
    """Sends one byte of a body of 1,000. Yields the response and the writer for the rest.

    Unlike httpx, it reads a response that comes before the body is complete.
    """
    reader, writer = await asyncio.open_connection(
        author.http.base_url.host, author.http.base_url.port
    )
    writer.write(
        b"POST /v1/media:upload HTTP/1.1\r\nhost: photomesh\r\ncontent-length: 1000\r\n"
        b"authorization: Bearer %b\r\n\r\na" % author.token.encode()
    )

    async def read() -> httpx.Response:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().strip()
        status, *lines = head.split("\r\n")
        headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])
        content = await reader.readexactly(int(headers["content-length"]))
        request = httpx.Request("POST", "/v1/media:upload")
        return httpx.Response(int(status.split()[1]), content=content, request=request)

    answer = asyncio.create_task(read())
    try:
        yield answer, writer
    finally:
        answer.cancel()
        writer.transport.abort()


async def test_stalled_bodies_leave_room_for_others(author, person):
    async with AsyncExitStack() as bodies:
        begun = [
            await bodies.enter_async_context(begun_body(author)) for _ in range(LIMITS.streams)
        ]
        answers = [answer for answer, _ in begun]

        async def refused() -> list[ApiError]:
            return [ApiError(answer.result()) for answer in answers if answer.done()]

        too_many = LIMITS.streams - LIMITS.streams_per_account
        errors = await eventually(refused, lambda found: len(found) == too_many)
        assert {(error.status, error.reason) for error in errors} == {(429, "TOO_MANY_STREAMS")}
        assert (await put(await person().sign_up(), b"abc"))["media"]["mediaId"]

    # The connections are closed, and all slots are free again.
    await eventually(lambda: put(author, b"abc"))


@pytest.mark.skipif(not PROVING, reason="takes as long as a slow stream may take")
async def test_a_body_that_trickles_is_ended(author):
    async with begun_body(author) as (answer, writer):
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=1)
        refused = ApiError(await answer)

    assert (refused.status, refused.reason) == (409, "STREAM_TOO_SLOW")


async def test_the_limits_are_reported(author):
    limits = await author.call("GET", "/v1/media/limits")

    assert limits["formMaxBytes"] == str(32 * MIB)
    assert limits["maxBytes"] == str(4096 * MIB)
    assert limits["abandonedAfter"] == "86400s"


async def test_a_multipart_upload_works_through_the_gateway(author, stored):
    file = os.urandom(7 * MIB)
    opened = await author.call(
        "POST",
        "/v1/media/multipart",
        {"contentType": "application/octet-stream", "sizeBytes": len(file), "requestId": "one"},
    )
    path = f"/v1/media/{opened['media']['mediaId']}"
    signed = await author.call("POST", f"{path}/parts:sign", {"partNumbers": [2, 1]})
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as phone:
        for part in signed["parts"]:
            begin = (part["partNumber"] - 1) * int(opened["partBytes"])
            content = file[begin : begin + int(part["sizeBytes"])]
            assert (await phone.put(part["url"], content=content)).is_success

    arrived = await author.call("GET", f"{path}/parts")
    assert [part["partNumber"] for part in arrived["parts"]] == [1, 2]
    media = (await author.call("POST", f"{path}:complete", {}))["media"]
    assert await stored(media) == hashlib.sha256(file).hexdigest()

    other = await author.call(
        "POST", "/v1/media/multipart", {"contentType": "image/jpeg", "sizeBytes": 5}
    )
    await author.call("POST", f"/v1/media/{other['media']['mediaId']}:abort", {})
    with pytest.raises(ApiError) as refused:
        await author.call("GET", f"/v1/media/{other['media']['mediaId']}")
    assert refused.value.reason == "MEDIA_UNKNOWN"
