"""Decodes a photo once and makes every variant of it, with OpenCV, on one core.

Runs only in child processes, see `renderers`. Nothing of the file but its pixels reaches a
variant, so neither does its metadata: no GPS position, no camera, no thumbnail.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from cv2.typing import MatLike

from services.media.pipeline.header import Header, Kind, read_header
from services.media.pipeline.outputs import (
    ENCODINGS,
    JPEG,
    SIZES,
    WEBP,
    Encoding,
    Failure,
    Rendition,
    Size,
    Unprocessable,
    Variant,
)

Pixels = MatLike
"""Rows of pixels: blue, green, red, and for some alpha."""

_PARAMETERS = {
    JPEG: (
        *(cv2.IMWRITE_JPEG_QUALITY, JPEG.quality),
        *(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    ),
    WEBP: (cv2.IMWRITE_WEBP_QUALITY, WEBP.quality),
}

# What turns a picture upright: a transposition (rows become columns), then a flip.
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

# libjpeg fills what is missing with grey and only complains. Its other complaints, such as
# needless bytes between segments, are of files that every viewer shows.
_FATAL = (b"premature end of data", b"bad Huffman code")

_BAND_ROWS = 256

# One core for one photo: the renderers are as many as the cores.
cv2.setNumThreads(1)


def render(data: bytes) -> Rendition:
    """Makes every size in every encoding.

    Raises:
        Unprocessable: the file is no image, is damaged, or has too many pixels.
        MemoryError: the decoder got less memory than it needs.
    """
    header = read_header(data)
    picture = _upright(_decode(data, header), header.orientation)
    width, height = header.width, header.height
    if _UPRIGHT[header.orientation][0]:
        width, height = height, width

    scaled = _scale(picture, width, height)
    files: list[tuple[Variant, bytes]] = []
    for size in SIZES:
        for encoding in ENCODINGS:
            pixels = scaled[size]
            content = _encode(pixels, encoding)
            variant = Variant(
                name=size.name,
                content_type=encoding.content_type,
                object_name=f"{size.name}.{encoding.extension}",
                width=pixels.shape[1],
                height=pixels.shape[0],
                size_bytes=len(content),
            )
            files.append((variant, content))
    return Rendition(width, height, tuple(files))


def _decode(data: bytes, header: Header) -> Pixels:
    """Returns the picture as it lies in the file, perhaps reduced, colours premultiplied."""
    encoded = np.frombuffer(data, np.uint8)
    flags = cv2.IMREAD_UNCHANGED if header.transparent else _opaque_flags(header)
    try:
        with _complaints() as complaints:
            pixels = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise Unprocessable(Failure.CORRUPT) from error
    if pixels is None and header.kind is Kind.JPEG:
        # libjpeg does not tell that it ran out of memory. It may need this much, all at once.
        np.empty((header.height, header.width, 3), np.int16)
    if pixels is None or any(complaint in complaints for complaint in _FATAL):
        raise Unprocessable(Failure.CORRUPT)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    if pixels.shape[2] == 4:
        return _premultiply(pixels)
    return pixels


@contextmanager
def _complaints() -> Iterator[bytearray]:
    """Gives, when it ends, what the decoders' C code wrote to standard error meanwhile."""
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


def _opaque_flags(header: Header) -> int:
    flags = cv2.IMREAD_COLOR
    if header.kind is Kind.JPEG:
        # A JPEG decoder can leave out the detail that no variant shows, and is faster for it.
        flags = next((flag for factor, flag in _REDUCED if _covers_all(header, factor)), flags)
    return flags | cv2.IMREAD_IGNORE_ORIENTATION


def _covers_all(header: Header, factor: int) -> bool:
    """Tells whether a picture reduced by a factor is still as large as every variant."""
    width, height = header.width, header.height
    if _UPRIGHT[header.orientation][0]:
        width, height = height, width
    reduced = width // factor, height // factor
    return all(_covers(reduced, size.fit(width, height), size) for size in SIZES)


def _covers(source: tuple[int, int], target: tuple[int, int], size: Size) -> bool:
    if size.square:
        return min(source) >= target[0]
    return source[0] >= target[0] and source[1] >= target[1]


def _premultiply(pixels: Pixels) -> Pixels:
    """Weighs colours by their opacity, in place; drops an alpha channel that hides nothing.

    Otherwise the colours of invisible pixels would bleed into their neighbours when resized.
    """
    if int(pixels[..., 3].min()) == 255:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    # In bands, so that a large picture is not in memory several times.
    for top in range(0, len(pixels), _BAND_ROWS):
        band = pixels[top : top + _BAND_ROWS]
        alpha = cv2.cvtColor(band[..., 3], cv2.COLOR_GRAY2BGR)
        band[..., :3] = cv2.multiply(band[..., :3], alpha, scale=1 / 255)
    return pixels


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    transposed, flip = _UPRIGHT[orientation]
    if transposed:
        pixels = cv2.transpose(pixels)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _scale(picture: Pixels, width: int, height: int) -> dict[Size, Pixels]:
    """Returns every size, each made from the smallest larger one that shows all of it."""
    scaled: dict[Size, Pixels] = {}
    sources = [picture]
    for size in reversed(SIZES):
        target = size.fit(width, height)
        source = next(
            source for source in reversed(sources) if _covers(_size_of(source), target, size)
        )
        if size.square:
            source = _middle(source)
        if _size_of(source) != target:
            source = cv2.resize(source, target, interpolation=cv2.INTER_AREA)
        scaled[size] = source
        if not size.square:
            sources.append(source)
    return scaled


def _size_of(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def _middle(pixels: Pixels) -> Pixels:
    """Returns the largest square in the middle."""
    width, height = _size_of(pixels)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return pixels[top : top + side, left : left + side]


def _encode(pixels: Pixels, encoding: Encoding) -> bytes:
    if pixels.shape[2] == 4:
        pixels = _on_white(pixels) if encoding is JPEG else _unpremultiply(pixels)
    _, content = cv2.imencode(f".{encoding.extension}", pixels, _PARAMETERS[encoding])
    return content.tobytes()


def _on_white(pixels: Pixels) -> Pixels:
    white = cv2.cvtColor(255 - pixels[..., 3], cv2.COLOR_GRAY2BGR)
    return cv2.add(pixels[..., :3], white)


def _unpremultiply(pixels: Pixels) -> Pixels:
    alpha = pixels[..., 3]
    # Where nothing is visible the colour is 0 already, and so is 0 by 0 here.
    colours = cv2.divide(pixels[..., :3], cv2.cvtColor(alpha, cv2.COLOR_GRAY2BGR), scale=255)
    return cv2.merge((*cv2.split(colours), alpha))
