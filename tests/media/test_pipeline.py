"""The pipeline in its real processes, on pictures of every shape and on invalid files."""

import asyncio
import contextlib
import io
import random

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from services.media.pipeline.outputs import Failure, Rendition, Unprocessable
from tests.media.pngs import GREY, RGB, png
from tests.pictures import on_disk, photo

CONTENT_TYPES = {"jpg": "image/jpeg", "webp": "image/webp", "avif": "image/avif"}
SIZES = ("square200", "w600", "w1080", "w2048")


def opened(rendition: Rendition) -> dict[str, Image.Image]:
    """Returns every variant by size and extension, after checking its metadata."""
    pictures = {}
    for variant in rendition.variants:
        content = rendition.contents[variant.object_name]
        picture = Image.open(io.BytesIO(content))
        assert picture.size == (variant.width, variant.height)
        assert len(content) == variant.size_bytes
        name, _, extension = variant.object_name.split(".")
        assert name == variant.name
        assert CONTENT_TYPES[extension] == variant.content_type
        assert Image.MIME[picture.format] == variant.content_type
        pictures[f"{name}.{extension}"] = picture
    return pictures


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def difference(one: Image.Image, other: Image.Image) -> float:
    """Returns the mean difference of two pictures' channels, from 0 to 255."""
    assert one.size == other.size
    mean = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean
    return sum(mean) / len(mean)


def assert_alike(pictures: dict[str, Image.Image], file: bytes, most: float) -> None:
    """Compares every variant with Pillow's rendering of the file."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    for name, picture in pictures.items():
        scale = ImageOps.fit if name.startswith("square") else Image.Image.resize
        assert difference(picture, scale(upright, picture.size, Image.Resampling.BOX)) < most, name


async def failure(renderers, file: bytes) -> Failure:
    with pytest.raises(Unprocessable) as refused:
        await renderers.render(on_disk(file))
    return refused.value.failure


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
async def test_every_orientation_is_turned_upright(renderers, image_format):
    files = [
        photo(320, 200, orientation=orientation, image_format=image_format, quality=95)
        for orientation in range(1, 9)
    ]

    for orientation, file in enumerate(files, 1):
        rendition = await renderers.render(on_disk(file))

        upright = (320, 200) if orientation < 5 else (200, 320)
        assert (rendition.width, rendition.height) == upright
        assert_alike(opened(rendition), file, most=3)


async def test_the_variants_of_a_large_photo_resemble_it(renderers):
    file = photo(2800, 2100, orientation=6, quality=92)

    pictures = opened(await renderers.render(on_disk(file)))

    sizes = {"square200": (200, 200), "w600": (600, 800), "w1080": (1080, 1440)}
    sizes["w2048"] = (2048, 2731)
    assert {name: picture.size for name, picture in pictures.items()} == {
        f"{name}.{extension}": size for name, size in sizes.items() for extension in CONTENT_TYPES
    }
    assert pictures["w1080.jpg"].info["progressive"]
    assert_alike(pictures, file, most=2)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
async def test_no_metadata_survives(renderers, image_format):
    profile = b"\0" * 128 + b"an ICC profile"
    file = photo(700, 500, image_format=image_format, icc_profile=profile, xmp=b"<x>where</x>")
    assert b"Test camera" in file

    rendition = await renderers.render(on_disk(file))

    for name, picture in opened(rendition).items():
        assert not picture.getexif(), name
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(picture.info), name
    for content in rendition.contents.values():
        for trace in (b"Exif", b"EXIF", b"Test camera", b"ICC", b"where"):
            assert trace not in content


@pytest.mark.parametrize(
    ("size", "square", "w600", "w1080"),
    [
        ((1, 1), (1, 1), (1, 1), (1, 1)),
        ((150, 100), (100, 100), (150, 100), (150, 100)),
        ((601, 300), (200, 200), (600, 300), (601, 300)),
        ((300, 900), (200, 200), (300, 900), (300, 900)),
        ((5000, 300), (200, 200), (600, 36), (1080, 65)),
        ((300, 5000), (200, 200), (300, 5000), (300, 5000)),
        ((30000, 1), (1, 1), (600, 1), (1080, 1)),
        # The maximum height of WebP.
        ((20, 30000), (20, 20), (11, 16383), (11, 16383)),
    ],
)
async def test_variants_keep_the_aspect_ratio_and_are_never_enlarged(
    renderers, size, square, w600, w1080
):
    file = photo(*size)

    pictures = opened(await renderers.render(on_disk(file)))

    for extension in ("jpg", "webp"):
        assert pictures[f"square200.{extension}"].size == square
        assert pictures[f"w600.{extension}"].size == w600
        assert pictures[f"w1080.{extension}"].size == w1080


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
async def test_transparency_becomes_white_in_jpeg_and_is_kept_in_webp(renderers, image_format):
    # A half-opaque green disc on a transparent background, whose invisible colour is red.
    alpha = Image.new("L", (1200, 1200), 0)
    alpha.paste(128, (300, 300, 900, 900))
    image = Image.new("RGB", (1200, 1200), (255, 0, 0))
    image.paste((0, 200, 0), (300, 300, 900, 900))
    image.putalpha(alpha)
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}

    pictures = opened(await renderers.render(on_disk(encoded(image, image_format, **options))))

    white = Image.new("RGBA", (1200, 1200), "white")
    composed = Image.alpha_composite(white, image).convert("RGB")
    for name in ("square200", "w600", "w1080"):
        jpeg, webp = pictures[f"{name}.jpg"], pictures[f"{name}.webp"]
        reference = composed.resize(jpeg.size, Image.Resampling.BOX)
        assert difference(jpeg, reference) < 2, name
        assert webp.mode == "RGBA"
        assert webp.getpixel((3, 3))[3] == 0
        assert webp.getpixel((webp.width // 2, webp.height // 2))[3] == 128
        over_white = Image.alpha_composite(Image.new("RGBA", webp.size, "white"), webp)
        # The invisible red does not bleed into the edge.
        assert difference(over_white, reference) < 2, name


async def test_an_opaque_alpha_channel_is_dropped(renderers):
    image = Image.open(io.BytesIO(photo(300, 200))).convert("RGBA")

    pictures = opened(await renderers.render(on_disk(encoded(image))))

    assert pictures["w600.webp"].mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("1", "PNG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"quality": 90}),
    ],
)
async def test_other_colour_models_are_supported(renderers, mode, image_format, options):
    image = Image.open(io.BytesIO(photo(300, 200)))
    if mode == "I;16":
        image = image.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        image = image.quantize(256) if mode == "P" else image.convert(mode)

    pictures = opened(await renderers.render(on_disk(encoded(image, image_format, **options))))

    reference = image
    if mode == "I;16":
        reference = image.convert("I").point(lambda value: value / 257).convert("L")
    assert difference(pictures["w1080.webp"], reference) < 6


async def test_the_first_frame_of_an_animation_is_used(renderers):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    for image_format in ("PNG", "WEBP"):
        file = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])

        pictures = opened(await renderers.render(on_disk(file)))

        assert difference(pictures["w600.jpg"], frames[0]) < 5


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"x", Failure.NOT_AN_IMAGE),
        (b"This is a letter, not a photo.", Failure.NOT_AN_IMAGE),
        (b"GIF89a" + bytes(100), Failure.CORRUPT),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", Failure.NOT_AN_IMAGE),
        (b"\xff\xd8\xffhello, I am a JPEG", Failure.CORRUPT),
        (b"\xff\xd8\xff\xff\xff", Failure.CORRUPT),
        (b"\x89PNG\r\n\x1a\n", Failure.CORRUPT),
        (b"RIFF\x10\0\0\0WEBPVP8X", Failure.CORRUPT),
        (b"RIFF\x10\0\0\0WEBPJUNK\0\0\0\0", Failure.CORRUPT),
        (png(0, 10, colours=RGB, rows=b""), Failure.CORRUPT),
        (png(10_000, 10_001, colours=RGB, rows=bytes(1_000_000)), Failure.TOO_MANY_PIXELS),
        (png(30_001, 1, colours=RGB, rows=bytes(1_000_000)), Failure.TOO_MANY_PIXELS),
        (png(2**31 - 1, 2**31 - 1, colours=RGB, rows=bytes(1_000_000)), Failure.TOO_MANY_PIXELS),
        (png(9_000, 9_000, colours=RGB, rows=bytes(1_000_000)), Failure.CORRUPT),
    ],
    ids=lambda value: value if isinstance(value, Failure) else None,
)
async def test_an_invalid_file_fails_with_a_reason(renderers, file, why):
    assert await failure(renderers, file) == why


async def test_a_decompression_bomb_is_not_decoded(renderers):
    bomb = png(30_000, 30_000, bits=1, colours=GREY)
    assert len(bomb) < 500_000

    assert await failure(renderers, bomb) == Failure.TOO_MANY_PIXELS


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
async def test_a_truncated_file_is_corrupt(renderers, image_format, kept):
    file = photo(800, 600, image_format=image_format)

    assert await failure(renderers, file[: int(len(file) * kept)]) == Failure.CORRUPT


async def test_a_truncated_photo_with_a_valid_end_marker_is_corrupt(renderers):
    file = photo(1600, 1200)

    assert await failure(renderers, file[: len(file) // 2] + b"\xff\xd9") == Failure.CORRUPT


async def test_data_after_the_photo_is_ignored(renderers):
    # Phones append depth maps and short videos.
    file = photo(300, 200)

    rendition = await renderers.render(on_disk(file + b"<script>alert(1)</script>" + file))

    assert all(b"script" not in content for content in rendition.contents.values())


async def test_damaged_files_are_either_rendered_or_refused(renderers):
    rng = random.Random(20261121)
    originals = [photo(96, 64, image_format=kind) for kind in ("JPEG", "PNG", "WEBP")]

    async def attempt(file: bytes) -> None:
        with contextlib.suppress(Unprocessable):
            await renderers.render(on_disk(file))

    files = []
    for original in originals:
        for _ in range(60):
            file = bytearray(original)
            for _ in range(rng.randrange(1, 6)):
                # Most of the decisive bytes are at the start.
                file[int(len(file) * rng.random() ** 2)] = rng.randrange(256)
            files.append(bytes(file))
    await asyncio.gather(*map(attempt, files))
