"""Malicious files: each is refused with a stable reason or sanitized, and the next one is ready.

The worker's processes stay below 1 GiB of memory.
"""

import asyncio
import contextlib
import functools
import io
import os
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import pytest
from photomesh.media.v1 import media_service_pb2 as pb
from PIL import ExifTags, Image

from deploy.local.proc import Identity, identify
from services.media.limits import LIMITS as UPLOADS
from services.media.pipeline.header import GUARANTEED_PIXELS, FileType
from services.media.pipeline.outputs import Failure, Unprocessable
from services.media.pipeline.renderers import Renderers
from tests.eventually import eventually
from tests.media.conftest import LIMITS
from tests.media.pngs import GREY, RGB, RGBA, png
from tests.media.test_pipeline_properties import assert_clean
from tests.media.test_renderers import children
from tests.pictures import on_disk, photo

pytestmark = pytest.mark.prove

PROVE = "PHOTOMESH_PROVE" in os.environ

NEAREST = Image.Resampling.NEAREST

MAX_RESIDENT = 2**30
GOOD = photo(320, 240)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def of_kind(image_format: str) -> bytes:
    return saved(Image.open(io.BytesIO(photo(400, 300))), image_format)


def gif_of(width: int, height: int) -> bytes:
    """A GIF that declares a larger screen than its frame."""
    small = of_kind("GIF")
    return small[:6] + struct.pack("<HH", width, height) + small[10:]


def tiff_of(width: int, height: int) -> bytes:
    """A TIFF of a few bytes that declares many pixels."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, width * height % 2**32)]
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)


def endless_tiff() -> bytes:
    """A TIFF whose directory refers to itself."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 5, 8)


def with_sizes_of(file: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """An AVIF or HEIF file whose declared size differs from that of its stream."""
    return file.replace(struct.pack(">II", *old), struct.pack(">II", *new))


def profile_bomb() -> bytes:
    """A PNG with a profile of 200 MB in 200 KB."""
    content = b"p\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(content)) + b"iCCP" + content
    chunk += struct.pack(">I", zlib.crc32(b"iCCP" + content))
    file = png(50, 50, colours=RGB)
    return file[:33] + chunk + file[33:]


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
BOX = b"\0\0\0\x18ftyp%b\0\0\0\0mif1%b"

REFUSED = {
    "nothing": (b"", Failure.NOT_AN_IMAGE),
    "zeros": (bytes(100_000), Failure.NOT_AN_IMAGE),
    "a letter": (b"Dear all, this is no photo.", Failure.NOT_AN_IMAGE),
    "a script": (SVG, Failure.NOT_AN_IMAGE),
    "a page": (b"<!DOCTYPE html><script>alert(1)</script>" + GOOD, Failure.NOT_AN_IMAGE),
    "an archive with a photo": (b"PK\x03\x04" + bytes(26) + GOOD, Failure.NOT_AN_IMAGE),
    "a film": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100), Failure.NOT_AN_IMAGE),
    "a PDF": (b"%PDF-1.7\n" + GOOD, Failure.NOT_AN_IMAGE),
    "an empty AVIF": (BOX % (b"avif", b"avif"), Failure.CORRUPT),
    "an empty HEIC": (BOX % (b"heic", b"heic"), Failure.CORRUPT),
    "only a GIF's name": (b"GIF89a", Failure.CORRUPT),
    "only a TIFF's name": (b"II*\0", Failure.CORRUPT),
    "a TIFF that never ends": (endless_tiff(), Failure.CORRUPT),
    "a bomb": (png(30_000, 30_000, bits=1, colours=GREY), Failure.TOO_MANY_PIXELS),
    "a GIF bomb": (gif_of(60_000, 60_000), Failure.TOO_MANY_PIXELS),
    "a TIFF bomb": (tiff_of(100_000, 100_000), Failure.TOO_MANY_PIXELS),
    "a TIFF without its pixels": (tiff_of(9_000, 9_000), Failure.CORRUPT),
    "an AVIF bomb": (
        with_sizes_of(of_kind("AVIF"), (400, 300), (60_000, 60_000)),
        {Failure.TOO_MANY_PIXELS, Failure.CORRUPT},
    ),
    "an HEIC bomb": (
        with_sizes_of(of_kind("HEIF"), (400, 300), (60_000, 60_000)),
        {Failure.TOO_MANY_PIXELS, Failure.CORRUPT},
    ),
    **{
        f"{kind} cut at {part:.0%}": (of_kind(kind)[: int(len(of_kind(kind)) * part)], why)
        for kind in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF")
        for part, why in ((0.2, Failure.CORRUPT), (0.5, Failure.CORRUPT), (0.9, Failure.CORRUPT))
    },
}

CLEANED = {
    **{
        f"{kind} and a script": of_kind(kind) + b"<script>alert(1)</script>" + SVG
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
    },
    "a photo in a photo's comment": saved(
        Image.open(io.BytesIO(photo(400, 300))), "JPEG", comment=b"<script>" + GOOD[:60_000]
    ),
    "a photo and an archive": GOOD + b"PK\x03\x04" + bytes(1000),
    # libavif scales the stream to the declared size.
    "an AVIF with a wrong size": with_sizes_of(of_kind("AVIF"), (400, 300), (3000, 3000)),
    "a bomb of a profile": profile_bomb(),
    "an animation": saved(
        Image.new("P", (40, 30)),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (40, 30), colour) for colour in range(1, 100)],
    ),
}


async def good_is_ready(renderers: Renderers) -> None:
    assert (await renderers.render(on_disk(GOOD))).width == 320


@pytest.mark.parametrize("name", REFUSED)
async def test_a_malicious_file_is_refused_and_the_next_is_ready(renderers, name):
    file, why = REFUSED[name]

    with pytest.raises(Unprocessable) as refused:
        await renderers.render(on_disk(file))

    assert refused.value.failure in (why if isinstance(why, set) else {why})
    await good_is_ready(renderers)


@pytest.mark.parametrize("name", CLEANED)
async def test_a_suspicious_file_is_sanitized_and_the_next_is_ready(renderers, name):
    rendition = await renderers.render(on_disk(CLEANED[name]))

    assert_clean(rendition)
    assert all(b"<script" not in content for content in rendition.contents.values())
    await good_is_ready(renderers)


@contextlib.contextmanager
def resident(processes: Callable[[], Collection[Identity]]) -> Iterator[list[int]]:
    """Yields a list that holds, at the end, the peak resident memory of processes in bytes."""
    most, stop = [0], Event()

    def watch() -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not stop.wait(0.005):
            total = 0
            with contextlib.suppress(OSError):
                for process in processes():
                    total += int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page
            most[0] = max(most[0], total)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()


@functools.cache
def large() -> list[bytes]:
    """The largest pictures that must be accepted, each expensive to decode in another way."""
    files = [png(9_990, 9_990, colours=RGBA)]
    if not PROVE:
        return files
    noise = np.random.default_rng(1).integers(0, 256, (500, 500, 4), np.uint8)

    def picture(file_type: FileType, mode: str) -> Image.Image:
        side = int(GUARANTEED_PIXELS[file_type] ** 0.5)
        return Image.fromarray(noise, "RGBA").resize((side, side), NEAREST).convert(mode)

    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    deep = cv2.resize(noise.astype(np.uint16) * 257, picture(FileType.AVIF, "L").size)
    _, avif = cv2.imencode(
        ".avif", deep >> 4, [cv2.IMWRITE_AVIF_DEPTH, 12, cv2.IMWRITE_AVIF_SPEED, 10]
    )
    return [
        *files,
        png(9_990, 9_990, colours=RGBA, bits=16),
        png(5_600, 16_800, colours=RGB, bits=16),
        saved(picture(FileType.JPEG, "CMYK"), "JPEG", progressive=True, subsampling=0),
        saved(picture(FileType.JPEG, "RGB"), "JPEG", progressive=True, subsampling=0),
        saved(picture(FileType.PNG, "RGB"), "JPEG", subsampling=0),
        saved(picture(FileType.PNG, "RGBA"), "PNG", compress_level=1),
        saved(picture(FileType.TIFF, "RGBA"), "TIFF", exif=turned),
        saved(picture(FileType.TIFF, "CMYK"), "TIFF"),
        saved(picture(FileType.GIF, "RGB").quantize(16), "GIF"),
        saved(picture(FileType.WEBP, "RGBA"), "WEBP", lossless=True, quality=0, method=0),
        saved(picture(FileType.WEBP, "RGB"), "WEBP", quality=10, method=0),
        avif.tobytes(),
        saved(picture(FileType.HEIF, "RGBA"), "HEIF", quality=30),
    ]


@pytest.mark.skipif(not PROVE, reason="takes a minute; the worker's test below uploads one of them")
async def test_large_pictures_are_rendered_without_blocking_small_ones():
    # The memory of the worker itself is not measured here; see the test below.
    worker = 120 * 2**20
    others = children(os.getpid())
    async with Renderers(2, LIMITS) as renderers:
        with resident(lambda: children(os.getpid()) - others) as most:
            working = [asyncio.create_task(renderers.render(on_disk(file))) for file in large()]
            passed = 0
            while not all(task.done() for task in working):
                await good_is_ready(renderers)
                passed += 1
            await asyncio.gather(*working)

    # They did not wait for all earlier ones.
    assert passed > len(large())

    assert most[0] + worker < MAX_RESIDENT, f"{most[0] / 2**20:.0f} MiB"


def corpus() -> dict[str, bytes]:
    """The files for the real worker: one of each kind, or all."""
    files = {name: file for name, (file, _) in REFUSED.items() if file} | CLEANED
    if PROVE:
        sent = {f"large {number}": file for number, file in enumerate(large())}
        return files | {
            name: file for name, file in sent.items() if len(file) <= UPLOADS.form_bytes
        }
    names = ("zeros", "a bomb", "an HEIC bomb", "JPEG cut at 90%", "a bomb of a profile")
    # The large one first, so that all others overtake it.
    return {"100 megapixels": large()[0]} | {name: files[name] for name in names}


async def test_the_worker_survives_malicious_files_and_good_files_after_them_are_ready(
    uploader, infrastructure
):
    infrastructure.up(["media-worker"])
    worker = identify(infrastructure.pid("media-worker"))
    bad: dict[str, int] = {}
    slowest = 0.0
    with resident(lambda: {worker, *children(worker.pid)}) as most:
        for name, file in corpus().items():
            sent = await uploader.upload(file, "application/octet-stream")
            bad[name] = sent.media_id
            begun = time.monotonic()
            good = await uploader.upload(GOOD)
            ready = await eventually(
                lambda good=good: uploader.get(good.media_id),
                lambda media: media.state == pb.MEDIA_STATE_READY,
            )
            slowest = max(slowest, time.monotonic() - begun)
            assert len(ready.variants) == 12
        ends = {
            name: await eventually(
                lambda media_id=media_id: uploader.get(media_id),
                lambda media: media.state in (pb.MEDIA_STATE_READY, pb.MEDIA_STATE_FAILED),
            )
            for name, media_id in bad.items()
        }

    # Shown by pytest -rP.
    print(f"{most[0] / 2**20:.0f} MiB at most; a good file took {slowest:.1f} s")  # noqa: T201
    for name, media in ends.items():
        if name in REFUSED:
            _, why = REFUSED[name]
            failure = pb.MediaFailure.Name(media.failure).removeprefix("MEDIA_FAILURE_")
            assert failure in (why if isinstance(why, set) else {why}), name
        else:
            assert media.state == pb.MEDIA_STATE_READY, name
    assert most[0] < MAX_RESIDENT, f"{most[0] / 2**20:.0f} MiB"
    assert identify(infrastructure.pid("media-worker")) == worker
