"""Each upload method of the service: files arrive complete, once, and only for their owners."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody
from photomesh.media.v1 import media_service_pb2 as pb

from services.chassis import context
from services.media.jobs import sweep_uploads
from services.media.limits import LIMITS, UNDECLARED
from services.media.storage.client import AT_A_TIME, S3
from services.media.storage.keys import key_prefix, original_key
from services.media.storage.originals import Originals
from services.media.store import Declaration, Media, State, UploadMethod
from tests.eventually import PATIENCE_SECONDS, eventually
from tests.media.conftest import Uploader, declared, new_user, refusal, send
from tests.pictures import photo

pytestmark = pytest.mark.prove

MIB = 2**20
PHOTO = photo(300, 200)

# `make prove` sends large files, and cuts more often.
PROVING = bool(os.environ.get("PHOTOMESH_PROVE"))
SIZES = [1, 5 * MIB - 1, 5 * MIB, 16 * MIB] + ([32 * MIB, 300 * MIB] if PROVING else [])
CUTS = 20 if PROVING else 3
SEEDS = range(60 if PROVING else 2)


def file_of(size: int) -> bytes:
    """Returns random bytes of no known type."""
    return b"?" + os.urandom(size - 1)


def sha256(file: bytes) -> str:
    return hashlib.sha256(file).hexdigest()


def metadata(uploader: Uploader) -> list[tuple[str, str]]:
    return [(context.USER_ID, str(uploader.user_id))]


async def call(uploader: Uploader, method: str, request):
    return await getattr(uploader.stub, method)(
        request, metadata=metadata(uploader), timeout=PATIENCE_SECONDS
    )


async def stored(originals: Originals, media: pb.Media) -> str:
    """Returns the SHA-256 of the original in S3."""
    prefix = key_prefix(media.media_id, media.owner_id)
    original = await originals.find(prefix)
    return (await originals.hash(prefix, original.etag)).hex()


def messages(
    file: bytes, *, offset: int = 0, chunk: int = MIB, **first
) -> Iterator[pb.UploadMediaRequest]:
    content_type = first.pop("content_type", UNDECLARED)
    yield pb.UploadMediaRequest(file=HttpBody(content_type=content_type), offset=offset, **first)
    for at in range(offset, len(file), chunk):
        yield pb.UploadMediaRequest(file=HttpBody(data=file[at : at + chunk]))


async def stream(uploader: Uploader, file: bytes, **first) -> pb.UploadMediaResponse:
    return await call(uploader, "UploadMedia", messages(file, **first))


async def open_parts(uploader: Uploader, file: bytes, **said) -> pb.CreateMultipartUploadResponse:
    said = {"content_type": UNDECLARED, "size_bytes": len(file)} | said
    return await call(uploader, "CreateMultipartUpload", pb.CreateMultipartUploadRequest(**said))


async def send_parts(uploader: Uploader, media_id: int, file: bytes, numbers) -> None:
    signed = await call(
        uploader,
        "SignUploadParts",
        pb.SignUploadPartsRequest(media_id=media_id, part_numbers=numbers),
    )
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, verify=False) as phone:
        room = asyncio.Semaphore(4)

        async def put(part: pb.SignedPart) -> None:
            begin = (part.part_number - 1) * LIMITS.part_bytes
            async with room:
                answer = await phone.put(part.url, content=file[begin : begin + part.size_bytes])
            assert answer.is_success, answer.text

        await asyncio.gather(*(put(part) for part in signed.parts))


async def by_parts(uploader: Uploader, file: bytes, **said) -> pb.Media:
    opened = await open_parts(uploader, file, **said)
    numbers = list(range(1, opened.part_count + 1))
    random.shuffle(numbers)
    await send_parts(uploader, opened.media.media_id, file, numbers)
    return await uploader.complete(opened.media.media_id)


async def by_stream(uploader: Uploader, file: bytes, **said) -> pb.Media:
    return (await stream(uploader, file, **{"size_bytes": len(file)} | said)).media


async def by_form(uploader: Uploader, file: bytes, **said) -> pb.Media:
    said = {"content_type": UNDECLARED, "size_bytes": len(file)} | said
    opened = await call(uploader, "CreateUpload", pb.CreateUploadRequest(**said))
    if opened.upload_url:
        assert (await send(opened, file)).is_success
    return await uploader.complete(opened.media.media_id)


@pytest.mark.parametrize(
    ("method", "size"),
    [
        *((by_form, size) for size in SIZES if size <= LIMITS.form_bytes),
        *((by_parts, size) for size in SIZES),
        *((by_stream, size) for size in SIZES),
    ],
)
async def test_every_byte_arrives(uploader, originals, method, size):
    file = file_of(size)

    media = await method(uploader, file, sha256=sha256(file))

    assert media.state >= pb.MEDIA_STATE_UPLOADED
    assert await stored(originals, media) == sha256(file)


async def test_the_limits_are_reported(uploader):
    limits = await call(uploader, "GetUploadLimits", pb.GetUploadLimitsRequest())

    assert limits.form_max_bytes == 32 * MIB
    assert limits.max_bytes == 4096 * MIB
    assert limits.max_pixels == 100_000_000
    assert {each.content_type for each in limits.pictures} < set(limits.content_types)
    assert all(each.max_pixels <= limits.max_pixels for each in limits.pictures)
    assert limits.abandoned_after.seconds == 24 * 3600
    assert "image/jpeg" in limits.content_types
    # S3's limits for parts.
    assert limits.part_bytes >= 5 * MIB
    assert limits.max_bytes / limits.part_bytes <= 10_000
    assert limits.max_open_uploads == 1_000
    assert limits.max_streams == 6
    assert limits.stream_min_bytes_per_second == 2_048
    assert limits.stream_patience.seconds == 60


@pytest.mark.parametrize(
    ("method", "size"),
    [("CreateUpload", 32 * MIB + 1), ("CreateMultipartUpload", 4096 * MIB + 1)],
)
async def test_uploads_over_the_limits_are_refused(uploader, method, size):
    request = getattr(pb, f"{method}Request")(content_type=UNDECLARED, size_bytes=size)

    assert await refusal(call(uploader, method, request)) == "FIELD_INVALID"


async def test_a_stream_need_not_declare_its_size(uploader, originals):
    file = file_of(13 * MIB)

    media = (await stream(uploader, file)).media

    assert await stored(originals, media) == sha256(file)


# --- The same bytes, the same request ------------------------------------------------------------


@pytest.mark.parametrize("method", [by_form, by_stream])
async def test_parallel_repeats_of_a_request_make_one_media(uploader, originals, method):
    file = file_of(100_000)
    at_once = LIMITS.streams_per_account if method is by_stream else 50

    uploaded = await asyncio.gather(
        *(method(uploader, file, request_id="one") for _ in range(at_once))
    )

    assert len({media.media_id for media in uploaded}) == 1
    assert await stored(originals, uploaded[0]) == sha256(file)


async def test_parallel_repeats_of_an_upload_in_parts_make_one_media(uploader, originals):
    file = file_of(100_000)

    # As many as call S3 at a time.
    opened = await asyncio.gather(
        *(open_parts(uploader, file, request_id="one") for _ in range(AT_A_TIME))
    )
    [media_id] = {each.media.media_id for each in opened}
    await send_parts(uploader, media_id, file, [1])
    completed = await asyncio.gather(*(uploader.complete(media_id) for _ in range(AT_A_TIME)))

    assert {media.media_id for media in completed} == {media_id}
    assert await stored(originals, completed[0]) == sha256(file)


async def test_parallel_streams_of_many_parts_make_one_media(uploader, originals):
    file = file_of(14 * MIB)

    async def with_retries() -> pb.Media:
        # A slower stream may find that another one has completed the upload, and retries.
        return await eventually(lambda: by_stream(uploader, file, request_id="one"))

    uploaded = await asyncio.gather(*(with_retries() for _ in range(4)))

    assert len({media.media_id for media in uploaded}) == 1
    assert await stored(originals, uploaded[0]) == sha256(file)


async def test_a_request_id_belongs_to_one_method_and_file(uploader):
    await by_stream(uploader, PHOTO, request_id="one")

    for other in (
        by_form(uploader, PHOTO, request_id="one"),
        by_parts(uploader, PHOTO, request_id="one"),
        by_stream(uploader, PHOTO + b"x", request_id="one"),
        by_stream(uploader, PHOTO, request_id="one", content_type="image/png"),
        by_stream(uploader, PHOTO, request_id="one", sha256=sha256(b"x")),
    ):
        assert await refusal(other) == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("first", [by_form, by_parts, by_stream])
async def test_the_same_bytes_are_not_sent_again(uploader, first):
    said = {"sha256": sha256(PHOTO), "content_type": "image/jpeg"}
    media = await first(uploader, PHOTO, **said)

    form = await call(
        uploader, "CreateUpload", pb.CreateUploadRequest(size_bytes=len(PHOTO), **said)
    )
    parts = await open_parts(uploader, PHOTO, **said)
    streamed = await stream(uploader, b"", size_bytes=len(PHOTO), **said)

    for answer in (form, parts, streamed):
        assert answer.reused
        assert answer.media.media_id == media.media_id
    assert not form.upload_url
    assert not parts.part_count
    # A hash alone does not give access to the bytes of another user.
    theirs = await open_parts(uploader.another_user(), PHOTO, **said)
    assert not theirs.reused
    assert theirs.part_count


# --- Wrong declarations --------------------------------------------------------------------------


async def test_s3_itself_refuses_a_form_with_other_bytes(uploader):
    opened = await call(
        uploader,
        "CreateUpload",
        pb.CreateUploadRequest(content_type=UNDECLARED, size_bytes=3, sha256=sha256(b"abc")),
    )

    assert (await send(opened, b"abd")).status_code == 400
    assert await refusal(uploader.complete(opened.media.media_id)) == "OBJECT_MISSING"
    assert (await send(opened, b"abc")).is_success
    assert (await uploader.complete(opened.media.media_id)).state >= pb.MEDIA_STATE_UPLOADED


async def test_s3_itself_refuses_a_modified_part(uploader):
    file = file_of(LIMITS.part_bytes + 10)
    opened = await open_parts(uploader, file)
    request = pb.SignUploadPartsRequest(media_id=opened.media.media_id, part_numbers=[2])
    [part] = (await call(uploader, "SignUploadParts", request)).parts

    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, verify=False) as phone:
        for url, content in [
            (part.url, b"x" * 11),
            (part.url, b"x" * 9),
            (part.url.replace("partNumber=2", "partNumber=1"), b"x" * 10),
            (part.url.replace("/original", "/original2"), b"x" * 10),
            (part.url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000"), b"x" * 10),
            (part.url[:-4] + "0000", b"x" * 10),
        ]:
            answer = await phone.put(url, content=content)
            assert answer.status_code in (400, 403), url

    assert await refusal(uploader.complete(opened.media.media_id)) == "OBJECT_MISSING"


@pytest.mark.parametrize("method", [by_parts, by_stream])
async def test_bytes_of_another_hash_are_not_announced(uploader, method):
    mismatch = method(uploader, file_of(7 * MIB), sha256=sha256(b"else"))

    assert await refusal(mismatch) == "OBJECT_MISMATCH"


@pytest.mark.parametrize("method", [by_form, by_parts, by_stream])
async def test_bytes_of_another_type_are_not_announced(uploader, method):
    assert await refusal(method(uploader, PHOTO, content_type="image/png")) == "OBJECT_MISMATCH"


async def test_a_stream_is_counted(uploader):
    assert await refusal(stream(uploader, b"abcd", size_bytes=3)) == "FIELD_INVALID"
    assert await refusal(stream(uploader, b"ab", size_bytes=3)) == "OBJECT_MISSING"
    assert await refusal(stream(uploader, b"")) == "FIELD_INVALID"
    assert await refusal(stream(uploader, b"abc", sha256="abc")) == "FIELD_INVALID"
    assert await refusal(stream(uploader, b"abc", offset=1)) == "FIELD_INVALID"
    too_long = stream(uploader, bytes(LIMITS.chunk_bytes + 1), chunk=LIMITS.chunk_bytes + 1)
    assert await refusal(too_long) == "FIELD_INVALID"


# --- Interrupted and resumed ---------------------------------------------------------------------


async def cut(uploader: Uploader, file: bytes, at: int, **first) -> None:
    """Streams the first `at` bytes of a file, and disconnects."""

    async def sent() -> AsyncIterator[pb.UploadMediaRequest]:
        for message in messages(file[:at], **first):
            yield message
        call.cancel()

    call = uploader.stub.UploadMedia(sent(), metadata=metadata(uploader))
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_an_interrupted_stream_resumes_at_the_stored_offset(uploader, originals):
    file = file_of(SIZES[-1])
    said = {"size_bytes": len(file), "request_id": "one", "sha256": sha256(file)}
    request = pb.GetUploadOffsetRequest(request_id="one")
    assert await refusal(call(uploader, "GetUploadOffset", request)) == "UPLOAD_UNKNOWN"

    at = 0
    for _ in range(CUTS):
        await cut(uploader, file, random.randint(at, len(file)), offset=at, **said)
        # The cut may come before the upload is opened.
        try:
            found = await call(uploader, "GetUploadOffset", request)
        except grpc.aio.AioRpcError:
            continue
        assert found.offset >= at
        at = found.offset
        if found.media.state != pb.MEDIA_STATE_PENDING:
            break

    media = await by_stream(uploader, file, offset=at, **said)

    assert await stored(originals, media) == sha256(file)
    assert (await call(uploader, "GetUploadOffset", request)).offset == len(file)


async def test_a_resumed_upload_is_still_checked(uploader):
    file = file_of(13 * MIB)
    said = {"size_bytes": len(file), "request_id": "one", "sha256": sha256(file)}
    request = pb.GetUploadOffsetRequest(request_id="one")
    await refusal(stream(uploader, b"!" * (12 * MIB), **said))
    assert (await call(uploader, "GetUploadOffset", request)).offset == 10 * MIB

    continued = by_stream(uploader, file, offset=10 * MIB, **said)

    assert await refusal(continued) == "OBJECT_MISMATCH"
    # The upload is aborted, so its request id can be used for the right bytes.
    assert (await by_stream(uploader, file, **said)).state >= pb.MEDIA_STATE_UPLOADED


async def test_stored_parts_are_listed_and_the_others_can_follow(uploader, originals):
    file = file_of(32 * MIB)
    opened = await open_parts(uploader, file, request_id="one", sha256=sha256(file))
    media_id = opened.media.media_id
    assert opened.part_count == 7
    await send_parts(uploader, media_id, file, [5, 2])

    # After a restart, the phone knows only its request id.
    again = await open_parts(uploader, file, request_id="one", sha256=sha256(file))
    assert again.media.media_id == media_id
    request = pb.ListUploadPartsRequest(media_id=media_id)
    arrived = await call(uploader, "ListUploadParts", request)
    assert [part.part_number for part in arrived.parts] == [2, 5]
    assert await refusal(uploader.complete(media_id)) == "OBJECT_MISSING"
    missing = {*range(1, 8)} - {part.part_number for part in arrived.parts}
    await send_parts(uploader, media_id, file, [*missing, 2])

    completed = await asyncio.gather(*(uploader.complete(media_id) for _ in range(20)))

    assert {media.media_id for media in completed} == {media_id}
    assert await stored(originals, completed[0]) == sha256(file)
    assert await refusal(call(uploader, "ListUploadParts", request)) == "UPLOAD_COMPLETED"


async def send_and_break(request: httpx.Request, at: int) -> None:
    """Sends the first bytes of a request's body, then breaks the connection."""
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    _, writer = await asyncio.open_connection(request.url.host, request.url.port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + request.read()[:at])
        await writer.drain()
    finally:
        writer.transport.abort()


async def break_part(
    uploader: Uploader, media_id: int, file: bytes, number: int, share: float
) -> None:
    """Sends a fraction of a part, from 0 to 1, then breaks the connection."""
    request = pb.SignUploadPartsRequest(media_id=media_id, part_numbers=[number])
    [part] = (await call(uploader, "SignUploadParts", request)).parts
    begin = (number - 1) * LIMITS.part_bytes
    content = file[begin : begin + part.size_bytes]
    put = httpx.Request("PUT", part.url, content=content)
    await send_and_break(put, int(share * len(content)))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_multipart_upload_resumes_after_any_interruption(uploader, originals, seed):
    rng = random.Random(seed)
    file = file_of(rng.randint(2 * LIMITS.part_bytes, 4 * LIMITS.part_bytes))
    said = {"sha256": sha256(file)} if rng.random() < 0.5 else {}
    media_id = (await open_parts(uploader, file, **said)).media.media_id

    safe: set[int] = set()
    while True:
        # After a restart, the app has only the file and the media id.
        request = pb.ListUploadPartsRequest(media_id=media_id)
        listed = await call(uploader, "ListUploadParts", request)
        arrived = {part.part_number for part in listed.parts}
        assert safe <= arrived
        safe = arrived
        missing = sorted({*range(1, listed.part_count + 1)} - arrived)
        if not missing:
            break
        rng.shuffle(missing)
        # Some parts arrive, some are cut, some are not sent; sometimes a stored one is sent again.
        whole = missing[: rng.randint(0, len(missing))]
        broken = missing[len(whole) :][: rng.randint(0, 2)]
        again = rng.sample(sorted(arrived), k=min(len(arrived), rng.randint(0, 1)))
        sending = [break_part(uploader, media_id, file, number, rng.random()) for number in broken]
        if whole:
            sending.append(send_parts(uploader, media_id, file, [*whole, *again]))
        await asyncio.gather(*sending)
        safe |= {*whole}

    media = await uploader.complete(media_id)

    assert await stored(originals, media) == sha256(file)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_form_is_sent_again_after_any_interruption(uploader, originals, seed):
    rng = random.Random(seed)
    file = file_of(rng.randint(1, 8 * MIB))
    said = {"content_type": UNDECLARED, "size_bytes": len(file), "request_id": "one"}
    if rng.random() < 0.5:
        said["sha256"] = sha256(file)

    for _ in range(rng.randint(1, 3)):
        opened = await call(uploader, "CreateUpload", pb.CreateUploadRequest(**said))
        post = httpx.Request(
            "POST", opened.upload_url, data=dict(opened.form_fields), files={"file": file}
        )
        # Before the last byte of the file, so that the interruption loses something.
        end = post.read().index(file) + len(file)
        await send_and_break(post, rng.randrange(end))
        assert await refusal(uploader.complete(opened.media.media_id)) == "OBJECT_MISSING"

    media = await by_form(uploader, file, **said)

    assert media.media_id == opened.media.media_id
    assert await stored(originals, media) == sha256(file)


async def test_an_upload_that_s3_completed_and_we_did_not_is_completed(
    store, uploads, multipart, streams, parts
):
    file = file_of(LIMITS.part_bytes + 1)
    for method in (UploadMethod.PARTS, UploadMethod.STREAM):
        media = (await uploads.open(new_user(), whole(file, method))).media
        media = await multipart.begin(media)
        pieces = file[: LIMITS.part_bytes], file[LIMITS.part_bytes :]
        sent = [
            await parts.put(media.key_prefix, media.s3_upload_id, number, bytearray(piece))
            for number, piece in enumerate(pieces, start=1)
        ]
        # The process dies here.
        await parts.complete(media.key_prefix, media.s3_upload_id, sent)

        if method is UploadMethod.PARTS:
            await uploads.complete(media)
        else:
            assert (await streams.stored(media)).is_whole
            await streams.receive(media.owner_id, whole(file, method), 0, no_chunks())

        assert (await store.media(media.media_id)).state is State.UPLOADED


async def no_chunks() -> AsyncIterator[bytes]:
    for nothing in ():
        yield nothing


def whole(file: bytes, method: UploadMethod) -> Declaration:
    digest = hashlib.sha256(file).digest()
    return declared(file, UNDECLARED, method=method, sha256=digest, request_id="one")


# --- Aborted, abandoned, and those of other users ------------------------------------------------


async def test_an_aborted_upload_is_unknown_and_s3_takes_no_more(uploader, originals):
    file = file_of(LIMITS.part_bytes + 1)
    opened = await open_parts(uploader, file, request_id="one")
    media_id = opened.media.media_id
    request = pb.SignUploadPartsRequest(media_id=media_id, part_numbers=[1])
    [part] = (await call(uploader, "SignUploadParts", request)).parts

    await call(uploader, "AbortUpload", pb.AbortUploadRequest(media_id=media_id))

    assert await refusal(uploader.get(media_id)) == "MEDIA_UNKNOWN"
    assert await refusal(uploader.complete(media_id)) == "MEDIA_UNKNOWN"
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, verify=False) as phone:
        answer = await phone.put(part.url, content=file[: LIMITS.part_bytes])
    assert answer.status_code == 404
    again = await open_parts(uploader, file, request_id="one")
    assert again.media.media_id != media_id


async def test_a_completed_upload_cannot_be_aborted(uploader):
    media = await by_stream(uploader, PHOTO)
    request = pb.AbortUploadRequest(media_id=media.media_id)

    assert await refusal(call(uploader, "AbortUpload", request)) == "UPLOAD_COMPLETED"
    signing = pb.SignUploadPartsRequest(media_id=media.media_id, part_numbers=[1])
    assert await refusal(call(uploader, "SignUploadParts", signing)) == "UPLOAD_COMPLETED"


async def test_only_multipart_uploads_have_parts(uploader):
    media_id = (await uploader.create(PHOTO)).media.media_id
    signing = pb.SignUploadPartsRequest(media_id=media_id, part_numbers=[1])
    listing = pb.ListUploadPartsRequest(media_id=media_id)

    assert await refusal(call(uploader, "SignUploadParts", signing)) == "UPLOAD_NOT_MULTIPART"
    assert await refusal(call(uploader, "ListUploadParts", listing)) == "UPLOAD_NOT_MULTIPART"


async def test_a_part_number_out_of_range_is_refused(uploader):
    media_id = (await open_parts(uploader, PHOTO)).media.media_id
    signing = pb.SignUploadPartsRequest(media_id=media_id, part_numbers=[1, 2])

    assert await refusal(call(uploader, "SignUploadParts", signing)) == "FIELD_INVALID"


async def test_uploads_of_another_user_are_unknown(uploader):
    media_id = (await open_parts(uploader, PHOTO)).media.media_id
    await refusal(stream(uploader, b"x", size_bytes=2, request_id="one"))

    for stranger, unknown in (
        (uploader.another_user(), ("MEDIA_UNKNOWN", "UPLOAD_UNKNOWN")),
        (replace(uploader, user_id=0), ("TOKEN_MISSING", "TOKEN_MISSING")),
    ):
        for method, request in (
            ("CompleteUpload", pb.CompleteUploadRequest(media_id=media_id)),
            ("AbortUpload", pb.AbortUploadRequest(media_id=media_id)),
            ("ListUploadParts", pb.ListUploadPartsRequest(media_id=media_id)),
            ("SignUploadParts", pb.SignUploadPartsRequest(media_id=media_id, part_numbers=[1])),
        ):
            assert await refusal(anonymous(stranger, method, request)) == unknown[0]
        request = pb.GetUploadOffsetRequest(request_id="one")
        assert await refusal(anonymous(stranger, "GetUploadOffset", request)) == unknown[1]
    signed_out = replace(uploader, user_id=0)
    assert await refusal(anonymous(signed_out, "UploadMedia", messages(b"x"))) == "TOKEN_MISSING"


async def anonymous(uploader: Uploader, method: str, request):
    said = metadata(uploader) if uploader.user_id else []
    return await getattr(uploader.stub, method)(request, metadata=said, timeout=PATIENCE_SECONDS)


async def test_only_abandoned_uploads_are_swept(
    store, uploads, multipart, streams, s3, originals, parts
):
    now = datetime.now(UTC)
    file = file_of(100)

    abandoned = []
    for method in UploadMethod:
        media = (await uploads.open(new_user(), whole(file, method))).media
        if method is UploadMethod.PARTS:
            media = await multipart.begin(media)
            await parts.put(media.key_prefix, media.s3_upload_id, 1, bytearray(file))
        elif method is UploadMethod.FORM:
            await put_original(s3, media, file)
        abandoned.append(media)
    done = (await streams.receive(new_user(), whole(file, UploadMethod.STREAM), 0, one(file))).media

    await sweep_uploads(store, uploads, now + timedelta(hours=23))
    assert [await store.media(media.media_id) for media in abandoned] == abandoned

    late = now + timedelta(hours=24, minutes=5)
    await asyncio.gather(*(sweep_uploads(store, uploads, late) for _ in range(3)))
    assert [await store.media(media.media_id) for media in abandoned] == [None] * 3
    # S3 still accepts its form, so the row stays until the form expires.
    assert await originals.find(abandoned[0].key_prefix)

    late = now + timedelta(hours=24, minutes=15)
    await asyncio.gather(*(sweep_uploads(store, uploads, late) for _ in range(3)))
    for media in abandoned:
        assert await originals.find(media.key_prefix) is None
        if media.s3_upload_id:
            assert await parts.stored(media.key_prefix, media.s3_upload_id) is None
    assert (await store.media(done.media_id)).state is State.UPLOADED
    assert await originals.find(done.key_prefix)


async def one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


async def put_original(s3: S3, media: Media, file: bytes) -> None:
    await asyncio.to_thread(
        s3.short.client.put_object,
        Bucket="photomesh-originals",
        Key=original_key(media.key_prefix),
        Body=file,
    )
