"""How fast photos become variants, compared with two baselines.

The floor is the time of the encoders alone for the same variants: everything else (decoding,
colours, sizes, hashes) is the pipeline's own cost. libvips, if `pyvips` and `pyvips-binary` are
also installed, makes variants of the same sizes, encodings, and qualities from the same files. All
run on one core and are measured in CPU seconds; the fastest of several rounds counts.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

# Set before OpenCV, numpy, and libvips are imported, because they read them on import.
_ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}

if TYPE_CHECKING:
    from PIL import Image


@click.command()
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def pipeline(photos: Path | None, rounds: int) -> None:
    """Renders photos (generated ones, or those of a folder) on one core."""
    os.environ.update(_ONE_CORE)
    from services.media.pipeline.decode import decode, open_source
    from services.media.pipeline.outputs import ENCODINGS, SIZES
    from services.media.pipeline.render import encode, render, resize

    files = _files(photos) if photos else _generated()
    total = floor = vips = comparable = 0.0
    click.echo("pipeline: CPU ms per photo on one core:")
    for name, data in files:
        file = _on_disk(data)
        source = open_source(file)
        picture = decode(source)
        sizes = [resize(picture, size, source.size) for size in SIZES]

        def encoders(pictures: Sequence[Any] = sizes) -> None:
            for each in pictures:
                for encoding in ENCODINGS:
                    encode(each, encoding)

        def whole_pipeline(file: BinaryIO = file) -> None:
            render(open_source(file), {}, lambda _: None, threads=1)

        least = _fastest([encoders, whole_pipeline, *_vips(data)], rounds)
        floor, total = floor + least[0], total + least[1]
        shown = f"  {name:28} encoders {least[0] * 1e3:5.0f}   pipeline {least[1] * 1e3:5.0f}"
        shown += f"   ratio {least[1] / least[0]:.2f}"
        if len(least) > 2:
            vips, comparable = vips + least[2], comparable + least[1]
            shown += f"   libvips {least[2] * 1e3:5.0f}"
        click.echo(shown)
    speed = len(files) / total
    click.echo(
        f"  {speed:.2f} photos/s per core; {total / floor:.2f} times the time of the encoders alone"
    )
    if vips:
        click.echo(
            f"  libvips takes {vips / comparable:.2f} times as long for the files that it can read"
        )
    else:
        click.echo("  to compare with libvips: .venv/bin/uv pip install pyvips pyvips-binary")


def _on_disk(data: bytes) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- The caller uses it.
    file.write(data)
    file.flush()
    return file


def _fastest(works: Sequence[Callable[[], None]], rounds: int) -> list[float]:
    """Returns the least CPU seconds of each; in turns, so that machine load affects all equally."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, times in zip(works, spent, strict=True):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
    return [min(times) for times in spent]


def _vips(data: bytes) -> list[Callable[[], None]]:
    """Returns a function that makes the same variants with libvips; empty if not installed."""
    try:
        import pyvips  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return []
    from services.media.pipeline.outputs import AVIF, JPEG, SIZES, WEBP

    def work() -> None:
        # Decoded once; by default, libvips would read the file again for each size.
        largest = pyvips.Image.thumbnail_buffer(
            data, SIZES[-1].width, height=16_383, size="down", export_profile="srgb"
        ).copy_memory()
        for size in SIZES:
            box = {"height": size.width, "crop": "centre"} if size.square else {"height": 16_383}
            picture = largest.thumbnail_image(size.width, size="down", **box).copy_memory()
            picture.jpegsave_buffer(
                Q=JPEG.quality, interlace=True, optimize_coding=True, keep="none"
            )
            picture.webpsave_buffer(Q=WEBP.quality, keep="none")
            picture.heifsave_buffer(Q=AVIF.quality, compression="av1", effort=0, keep="none")

    try:
        work()
    except pyvips.Error:
        # The wheel has no HEVC decoder.
        return []
    return [work]


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]


def _generated() -> list[tuple[str, bytes]]:
    """Generates photos of a phone's size in several containers, with realistic detail."""
    import numpy as np
    import pillow_heif
    from PIL import Image

    pillow_heif.register_heif_opener()
    rng = np.random.default_rng(7)
    pixels = np.zeros((3000, 4000, 3), np.float32)
    # Half the amplitude at twice the frequency, as in natural images.
    for octave in range(2, 11):
        shape = (3 * 2**octave // 4, 2**octave, 3)
        noise = rng.normal(0, 90 / 2 ** (octave / 2), shape).astype(np.float32)
        pixels += np.stack(
            [
                np.asarray(Image.fromarray(noise[..., c]).resize((4000, 3000)), np.float32)
                for c in range(3)
            ],
            axis=-1,
        )
    photo = Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        ("12 MP JPEG", _saved(photo, "JPEG", quality=90)),
        ("12 MP JPEG, turned", _saved(photo, "JPEG", quality=90, exif=turned)),
        ("12 MP JPEG, progressive", _saved(photo, "JPEG", quality=85, progressive=True)),
        ("12 MP HEIC", _saved(photo, "HEIF", quality=60)),
        ("3 MP PNG", _saved(photo.resize((2000, 1500)), "PNG", compress_level=1)),
        ("3 MP WebP", _saved(photo.resize((2000, 1500)), "WEBP", quality=85, method=2)),
    ]


def _saved(image: "Image.Image", image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
