"""Any picture in any container: every variant shows it upright, in sRGB, and nothing else.

The reference is the upright picture, scaled down by Pillow. Differences are measured as PSNR, the
peak signal-to-noise ratio in dB: a difference of 30 is hard to see, one of 25 is visible.
"""

import io
import math
import os
import random

import cv2
import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from services.media.pipeline.outputs import Rendition
from tests.media import profiles
from tests.media.test_pipeline import opened
from tests.pictures import BERLIN, on_disk

pytestmark = pytest.mark.prove

pillow_heif.register_heif_opener()

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "40"))

# The transformation of an upright picture into the stored one for each orientation.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "RGB16", "RGBA16"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
    "HEIF": ("L", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "RGB16"),
}

# The minimum PSNR of variants, in dB: pictures with sharp edges lose most.
MIN_PSNR = {"1": 16.0, "P": 24.0}
USUALLY = 26.0


def picture(width: int, height: int, seed: int) -> Image.Image:
    rng = random.Random(seed)
    small = Image.new("RGB", (4, 3))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(12)])
    return small.resize((width, height), Image.Resampling.BICUBIC)


def psnr(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(each.convert("RGB"), float) for each in (one, other))
    error = float(((a - b) ** 2).mean())
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        # Half transparent at the left, invisible at the right.
        alpha = Image.linear_gradient("L").rotate(90).resize(image.size)
        image.putalpha(alpha)
        return image
    if mode == "1":
        # In areas, because single dots would vanish when scaled down.
        return image.convert(mode, dither=Image.Dither.NONE)
    return image.quantize(256) if mode == "P" else image.convert(mode)


def on_white(image: Image.Image, mode: str) -> Image.Image:
    """Returns the visible picture, on a white background."""
    if mode == "I;16":
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def file_of(upright: Image.Image, image_format: str, mode: str, orientation: int, **options):
    """Returns a file that displays as `upright`, and the picture as the format can store it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Photomesh"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(BERLIN)
    transpose = _STORED[orientation]
    if mode.endswith("16") and mode != "I;16":
        alpha = mode.startswith("RGBA")
        shown = in_mode(upright, "RGBA" if alpha else "RGB")
        stored = np.asarray(shown if transpose is None else shown.transpose(transpose))
        swapped = cv2.cvtColor(stored, cv2.COLOR_RGBA2BGRA if alpha else cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(f".{image_format.lower()}", swapped.astype(np.uint16) * 257)
        return data.tobytes(), on_white(shown, "RGBA" if alpha else "RGB")
    shown = in_mode(upright, mode)
    stored = shown if transpose is None else shown.transpose(transpose)
    file = io.BytesIO()
    if image_format != "GIF":
        # Given bytes, pillow-heif also writes HEIF's own orientation, as phones do.
        options.setdefault("exif", exif.tobytes())
    stored.save(file, image_format, **options)
    return file.getvalue(), on_white(shown, mode)


def orientations(image_format: str, mode: str) -> tuple[int, ...]:
    # GIF has no EXIF, and OpenCV, which writes the 16-bit files, does not write it.
    plain = image_format == "GIF" or (mode.endswith("16") and mode != "I;16")
    return (1,) if plain else tuple(_STORED)


def assert_shows(rendition: Rendition, shown: Image.Image, least: float) -> None:
    assert (rendition.width, rendition.height) == shown.size
    for name, variant in opened(rendition).items():
        variant.load()
        seen = on_white(variant, variant.mode)
        scale = ImageOps.fit if name.startswith("square") else Image.Image.resize
        reference = scale(shown, variant.size, Image.Resampling.BOX)
        assert psnr(seen, reference) >= least, f"{name}: {psnr(seen, reference):.1f} dB"


def assert_clean(rendition: Rendition) -> None:
    for name, content in rendition.contents.items():
        variant = Image.open(io.BytesIO(content))
        assert not variant.getexif(), name
        assert not {"exif", "icc_profile", "xmp", "comment"} & set(variant.info), name
        for trace in (b"Photomesh", b"ICC_PROFILE", b"xmpmeta"):
            assert trace not in content, (name, trace)


@st.composite
def files(draw):
    image_format = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[image_format]))
    orientation = draw(st.sampled_from(orientations(image_format, mode)))
    width, height = draw(st.integers(48, 900)), draw(st.integers(48, 900))
    seed = draw(st.integers(0, 2**16))
    options = {"quality": 95} if image_format in ("JPEG", "WEBP", "AVIF", "HEIF") else {}
    return image_format, mode, orientation, (width, height), seed, options


@given(files())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
async def test_any_picture_is_shown_upright_and_without_metadata(renderers, drawn):
    image_format, mode, orientation, size, seed, options = drawn
    file, shown = file_of(picture(*size, seed), image_format, mode, orientation, **options)

    rendition = await renderers.render(on_disk(file))

    assert_shows(rendition, shown, MIN_PSNR.get(mode, USUALLY))
    assert_clean(rendition)


@pytest.mark.parametrize("image_format", [each for each in MODES if each != "GIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
async def test_every_orientation_in_every_container(renderers, image_format, orientation):
    file, shown = file_of(picture(90, 60, 3), image_format, "RGB", orientation)

    assert_shows(await renderers.render(on_disk(file)), shown, USUALLY)


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_an_orientation_only_in_exif_is_applied_in_heif(renderers, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file, shown = file_of(picture(90, 60, 3), "HEIF", "RGB", orientation, exif=exif)
    assert b"irot" not in file
    assert b"imir" not in file

    assert_shows(await renderers.render(on_disk(file)), shown, USUALLY)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
async def test_a_wide_gamut_becomes_srgb(renderers, image_format, mode):
    if mode not in MODES[image_format]:
        return
    profile = profiles.screen()
    options = {} if image_format in ("PNG", "TIFF") else {"quality": 95}
    file, _ = file_of(picture(300, 200, 5), image_format, mode, 1, icc_profile=profile, **options)

    rendition = await renderers.render(on_disk(file))

    srgb = ImageCms.createProfile("sRGB")
    meant = ImageCms.profileToProfile(
        in_mode(picture(300, 200, 5), mode), io.BytesIO(profile), srgb
    )
    assert psnr(on_white(meant, mode), on_white(in_mode(picture(300, 200, 5), mode), mode)) < 30
    assert_shows(rendition, on_white(meant, mode), USUALLY)
    assert_clean(rendition)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
async def test_a_grey_profile_becomes_srgb(renderers, image_format):
    grey = picture(300, 200, 5).convert("L")
    file, _ = file_of(grey, image_format, "L", 1, icc_profile=profiles.grey())

    rendition = await renderers.render(on_disk(file))

    # In linear light, the middle grey is brighter.
    meant = grey.point([round(255 * _srgb(value / 255)) for value in range(256)])
    assert_shows(rendition, meant.convert("RGB"), USUALLY)


def _srgb(light: float) -> float:
    return light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
async def test_cmyk_is_converted_by_its_profile(renderers, image_format):
    inks = picture(300, 200, 7).convert("CMYK")
    profile = profiles.press()
    options = {"quality": 95} if image_format == "JPEG" else {}
    # Pillow inverts CMYK in a JPEG, as Adobe does, and marks the file so.
    file, _ = file_of(inks, image_format, "CMYK", 1, icc_profile=profile, **options)
    assert image_format == "TIFF" or b"Adobe" in file

    rendition = await renderers.render(on_disk(file))

    srgb = ImageCms.createProfile("sRGB")
    meant = ImageCms.profileToProfile(
        inks,
        io.BytesIO(profile),
        srgb,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert psnr(meant, inks.convert("RGB")) < 25
    assert_shows(rendition, meant, USUALLY)


@pytest.mark.parametrize("profile", [b"", b"\0" * 200, profiles.press(), profiles.screen()[:200]])
async def test_an_invalid_profile_is_ignored(renderers, profile):
    file, shown = file_of(picture(300, 200, 5), "PNG", "RGB", 1, icc_profile=profile)

    assert_shows(await renderers.render(on_disk(file)), shown, USUALLY)
