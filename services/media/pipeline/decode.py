"""Decoding of a file to an upright sRGB picture, no larger than the largest variants need.

Only pixels leave this module, so no metadata of the file reaches a variant: no GPS position, no
camera model, no thumbnail.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import cv2
import numpy as np
from cv2.typing import MatLike
from PIL import Image

from services.media.pipeline.colour import inks_to_srgb, to_srgb
from services.media.pipeline.header import FileType, Header, check_size, file_type_of, read_header
from services.media.pipeline.outputs import SIZES, Failure, Size, Unprocessable
from services.media.pipeline.pillow_formats import open_with_pillow, pillow_errors_as_unprocessable

Pixels = MatLike
"""Rows of BGR pixels, or of BGRA pixels with premultiplied alpha."""

# How to turn a picture upright, by EXIF orientation: whether to transpose it, then how to flip it.
_ROWS, _COLUMNS, _BOTH = 0, 1, -1
_UPRIGHT: dict[int, tuple[bool, int | None]] = {
    1: (False, None),
    2: (False, _COLUMNS),
    3: (False, _BOTH),
    4: (False, _ROWS),
    5: (True, None),
    6: (True, _COLUMNS),
    7: (True, _BOTH),
    8: (True, _ROWS),
}

_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)

# libjpeg fills missing data with grey and prints one of these warnings. Its other warnings, such as
# extra bytes between segments, concern files that every viewer shows.
_FATAL = (b"premature end of data", b"bad Huffman code")

_BAND_PIXELS = 2_000_000

_NEAR_PIXELS = 1_000_000

# The decoders of these types (OpenCV's, and libtiff) keep all of the file that they have read in
# memory.
_MAPPED = frozenset({FileType.JPEG, FileType.WEBP, FileType.TIFF})
MAX_MAPPED_BYTES = 256 * 1024 * 1024

_MARGIN_BYTES = 24 * 1024 * 1024

_LARGE_BYTES = 128 * 1024 * 1024

# Bytes per pixel of a file while it is decoded, measured. OpenCV holds the picture twice.
_BYTES_A_PIXEL = {FileType.PNG: 8, FileType.WEBP: 9, FileType.AVIF: 10, FileType.HEIF: 9}

# Pillow holds the picture once, if it is read in bands.
_BYTES_A_BANDED_PIXEL = 4

# Bytes that an encoder needs per pixel of a variant.
_BYTES_AN_ENCODED_PIXEL = 24


@dataclass(frozen=True)
class Source:
    """A file whose header was read."""

    data: mmap.mmap
    """The whole file, memory-mapped."""
    header: Header
    image: Image.Image | None
    """The Pillow image that decodes the file; None: OpenCV decodes it."""

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the upright picture, in pixels."""
        width, height = self.header.width, self.header.height
        return (height, width) if _UPRIGHT[self.header.orientation][0] else (width, height)

    @property
    def large(self) -> bool:
        """Whether the file needs so much memory that only one such file may render at a time."""
        header = self.header
        pixels = header.width * header.height
        if header.file_type is FileType.JPEG:
            needed = 6 * pixels // _reduction(self.size) ** 2
            if header.progressive:
                needed += _coefficient_bytes(header)
        elif _banded(header):
            needed = _BYTES_A_BANDED_PIXEL * pixels
        else:
            needed = _BYTES_A_PIXEL[header.file_type] * pixels
        width, height = SIZES[-1].fit(*self.size)
        return max(needed, _BYTES_AN_ENCODED_PIXEL * width * height) > _LARGE_BYTES


def open_source(file: BinaryIO) -> Source:
    """Reads a file's header. The file must be on a disk and stay open.

    Raises:
        Unprocessable: NOT_AN_IMAGE, CORRUPT, TOO_MANY_PIXELS or TOO_EXPENSIVE.
        MemoryError: the memory limit is too low.
    """
    if not os.fstat(file.fileno()).st_size:
        raise Unprocessable(Failure.NOT_AN_IMAGE)
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file_type = file_type_of(data)
    image = None
    if file_type in (FileType.JPEG, FileType.PNG, FileType.WEBP):
        header = read_header(file_type, data)
        check_size(header)
        if header.unusual or _banded(header):
            found, image = open_with_pillow(file_type, data, file)
            orientation = header.orientation if file_type is FileType.PNG else found.orientation
            header = replace(found, progressive=header.progressive, orientation=orientation)
    else:
        header, image = open_with_pillow(file_type, data, file)
    check_size(header)
    if file_type in _MAPPED and len(data) > MAX_MAPPED_BYTES:
        raise Unprocessable(Failure.TOO_EXPENSIVE)
    # Releases the pages that reading the header has loaded.
    data.madvise(mmap.MADV_DONTNEED)
    return Source(data, header, image)


def _banded(header: Header) -> bool:
    """Returns whether to read a picture from Pillow in bands, which saves memory."""
    if header.file_type is FileType.PNG:
        return (
            header.unusual
            or _BYTES_A_PIXEL[FileType.PNG] * header.width * header.height > _LARGE_BYTES
        )
    return header.file_type in (FileType.TIFF, FileType.GIF)


def decode(source: Source) -> Pixels:
    """Returns the picture, large enough for every variant.

    Raises:
        Unprocessable: CORRUPT.
        MemoryError: the memory limit is too low.
    """
    profile = source.header.profile
    if source.header.progressive:
        # libjpeg reports a damaged file when it runs out of memory. This allocation raises
        # MemoryError instead.
        np.empty(_coefficient_bytes(source.header) + _MARGIN_BYTES, np.uint8)
    if source.image is None:
        pixels = _decode(source)
    else:
        pixels, profile = _decode_with_pillow(source, source.image)

    upright = _enough(source.size)
    transposed, flip = _UPRIGHT[source.header.orientation]
    target = upright[::-1] if transposed else upright
    # Shrinks first, because rotating a smaller picture is cheaper.
    pixels = shrink(pixels, target)
    if transposed:
        pixels = cv2.transpose(pixels)
    if flip is not None:
        pixels = cv2.flip(pixels, flip)

    if profile is None:
        return pixels
    if pixels.shape[2] == 4:
        return _premultiply(to_srgb(unpremultiply(pixels), profile))
    return to_srgb(pixels, profile)


def shrink(pixels: Pixels, target: tuple[int, int]) -> Pixels:
    """Returns a picture resized to a width and height that are at most its own."""
    height, width = pixels.shape[:2]
    most = min(width // target[0], height // target[1])
    # Averaging whole pixels is several times faster than averaging fractions of them.
    factor = next((f for f in range(most, 1, -1) if width % f == height % f == 0), 1)
    if factor > 1:
        width, height = width // factor, height // factor
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if (width, height) == target:
        return pixels
    # If the factor is less than 2, linear interpolation skips no pixel and takes a tenth of the
    # time. In small pictures single pixels are visible, and there is little time to save.
    near = width < 2 * target[0] and height < 2 * target[1]
    how = cv2.INTER_LINEAR if near and width * height > _NEAR_PIXELS else cv2.INTER_AREA
    return cv2.resize(pixels, target, interpolation=how)


def unpremultiply(pixels: Pixels) -> Pixels:
    """Returns BGRA pixels with straight (not premultiplied) alpha."""
    alpha = pixels[..., 3]
    # Invisible pixels have the colour 0, and OpenCV defines 0 divided by 0 as 0.
    colours = cv2.divide(pixels[..., :3], cv2.cvtColor(alpha, cv2.COLOR_GRAY2BGR), scale=255)
    return cv2.merge((*cv2.split(colours), alpha))


def _enough(picture: tuple[int, int]) -> tuple[int, int]:
    """Returns the smallest size from which every variant can be made."""
    width, height = picture
    scale = max(_scale(size, width, height) for size in SIZES)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scale(size: Size, width: int, height: int) -> float:
    fitted_width, fitted_height = size.fit(width, height)
    if size.square:
        return fitted_width / min(width, height)
    return max(fitted_width / width, fitted_height / height)


def _reduction(picture: tuple[int, int]) -> int:
    """Returns the factor by which a JPEG can be reduced while it is decoded: 1, 2, 4 or 8."""
    wanted = _enough(picture)
    for factor, _ in _REDUCED:
        if picture[0] // factor >= wanted[0] and picture[1] // factor >= wanted[1]:
            return factor
    return 1


def _decode(source: Source) -> Pixels:
    """Decodes with OpenCV; returns the picture before rotation, possibly reduced."""
    header = source.header
    encoded = np.frombuffer(source.data, np.uint8)
    flags = cv2.IMREAD_UNCHANGED
    if not header.transparent:
        flags = cv2.IMREAD_COLOR
        if header.file_type is FileType.JPEG:
            # A JPEG decoder can skip detail that no variant shows, which is faster.
            flags = dict(_REDUCED).get(_reduction(source.size), flags)
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with _decoder_messages() as messages:
            pixels = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise Unprocessable(Failure.CORRUPT) from error
    if pixels is None or any(message in messages for message in _FATAL):
        raise Unprocessable(Failure.CORRUPT)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    return _premultiply(pixels) if pixels.shape[2] == 4 else pixels


@contextmanager
def _decoder_messages() -> Iterator[bytearray]:
    """Captures what the decoders' C code writes to standard error; filled when the block ends."""
    text = bytearray()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        text += file.read()


def _decode_with_pillow(source: Source, image: Image.Image) -> tuple[Pixels, bytes | None]:
    """Decodes with Pillow; returns the picture before rotation, possibly reduced, and its profile.

    The profile is None if the colours are already sRGB. Reads the picture from Pillow in bands, so
    that a large one is not in memory twice.
    """
    header = source.header
    with pillow_errors_as_unprocessable():
        if header.file_type is FileType.JPEG:
            factor = _reduction(source.size)
            image.draft(image.mode, (header.width // factor, header.height // factor))
        image.load()
        # image.size is wrong for a rotated TIFF: Pillow reports the size after rotation.
        width, height = image.im.size
        inks = image.mode in ("CMYK", "LAB")
        wanted = _enough(source.size)
        factor = max(1, min(min(width, height) // min(wanted), max(width, height) // max(wanted)))
        shape = -(-height // factor), -(-width // factor)
        pixels = np.empty((*shape, 4 if header.transparent and not inks else 3), np.uint8)
        rows = factor * max(1, _BAND_PIXELS // (factor * width))
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(top + rows, height)))
            band = _as_shown(band, header, factor)
            pixels[top // factor : (top + rows) // factor] = cv2.cvtColor(
                np.asarray(band),
                cv2.COLOR_RGBA2BGRA if band.mode == "RGBa" else cv2.COLOR_RGB2BGR,
            )
        # Frees the picture, because the next steps need the memory.
        image.im = image.im.crop((0, 0, 1, 1))
    if pixels.shape[2] == 4 and int(pixels[..., 3].min()) == 255:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    return pixels, None if inks else header.profile


def _as_shown(band: Image.Image, header: Header, factor: int) -> Image.Image:
    """Returns a reduced band of a picture as RGB, or as RGBa (premultiplied alpha)."""
    if band.mode.startswith(("I", "F")):
        band = _eight_bits(band)
    if band.mode in ("CMYK", "LAB"):
        return inks_to_srgb(band.reduce(factor), header.profile)
    if header.transparent:
        band = band.convert("RGBA").convert("RGBa")
    elif band.mode != "RGB":
        band = band.convert("RGB")
    return band.reduce(factor) if factor > 1 else band


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts a grey picture of 16 bits, or of floats from 0 to 1, to 8 bits."""
    values = np.asarray(image)
    scale = 255.0 if values.dtype.kind == "f" else 1 / 257
    return Image.fromarray(np.clip(np.nan_to_num(values) * scale + 0.5, 0, 255).astype(np.uint8))


def _coefficient_bytes(header: Header) -> int:
    """Returns the largest size of the coefficients that libjpeg buffers for a progressive JPEG."""
    return 2 * (4 if header.unusual else 3) * header.width * header.height


def _premultiply(pixels: Pixels) -> Pixels:
    """Multiplies colours by alpha, in place; drops an alpha channel that is fully opaque.

    Without this, resizing would mix the colours of invisible pixels into their neighbours.
    """
    if int(pixels[..., 3].min()) == 255:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    # Works in bands, so that a large picture is not in memory several times.
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        band = pixels[top : top + rows]
        alpha = cv2.cvtColor(band[..., 3], cv2.COLOR_GRAY2BGR)
        band[..., :3] = cv2.multiply(band[..., :3], alpha, scale=1 / 255)
    return pixels
