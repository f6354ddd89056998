"""Runs the steps of the pipeline on one file, and independent steps in parallel.

Runs only in child processes; see `renderers`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2

from services.media.pipeline.decode import Pixels, Source, decode, shrink, unpremultiply
from services.media.pipeline.facts import blurhash, dominant_colour, perceptual_hash
from services.media.pipeline.outputs import (
    AVIF,
    JPEG,
    STEPS,
    VARIANT_STEPS,
    WEBP,
    Decoding,
    Encoding,
    Fact,
    Made,
    Rendition,
    Size,
    Step,
    object_name,
    variant,
)

_PARAMETERS = {
    JPEG: (
        *(cv2.IMWRITE_JPEG_QUALITY, JPEG.quality),
        *(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(cv2.IMWRITE_JPEG_OPTIMIZE, 1),
    ),
    WEBP: (cv2.IMWRITE_WEBP_QUALITY, WEBP.quality),
    AVIF: (
        *(cv2.IMWRITE_AVIF_QUALITY, AVIF.quality),
        # The next slower speed takes three times as long, and its files are not smaller.
        *(cv2.IMWRITE_AVIF_SPEED, 9),
        *(cv2.IMWRITE_AVIF_DEPTH, 8),
    ),
}

_FACTS = {
    Fact.BLURHASH: blurhash,
    Fact.DOMINANT_COLOUR: dominant_colour,
    Fact.PERCEPTUAL_HASH: perceptual_hash,
}

# Steps run in parallel, so OpenCV must not start threads within one.
cv2.setNumThreads(1)


def render(
    source: Source, present: Mapping[str, int], on_step: Callable[[Made], None], *, threads: int
) -> Rendition:
    """Makes every size in every encoding, and every fact.

    Args:
        source: the file.
        present: the variants to skip: object names and sizes in bytes.
        on_step: called with each finished step, from any of several threads.
        threads: how many steps run at a time.

    Raises:
        Unprocessable: the file is damaged.
        MemoryError: the memory limit is too low for a step.
    """
    names = {step: object_name(*makes) for step, makes in VARIANT_STEPS.items()}

    def run(step: Step, inputs: list[Future[Any]]) -> Any:
        result = _run(step, source, inputs)
        if step.name in VARIANT_STEPS:
            on_step(Made(step.name, variant(step.name, source.size, len(result)), result))
        else:
            on_step(Made(step.name))
        return result

    results: dict[str, Future[Any]] = {}
    pool = ThreadPoolExecutor(threads)
    try:
        # STEPS lists every step after its inputs, so a step only waits for steps that have started.
        for step in STEPS.values():
            if names.get(step.name) not in present:
                inputs = [results[name] for name in step.inputs]
                results[step.name] = pool.submit(run, step, inputs)
        contents = {name: results[step].result() for step, name in names.items() if step in results}
        facts = {fact: results[fact].result() for fact in Fact}
    finally:
        pool.shutdown(cancel_futures=True)

    sizes = dict(present) | {name: len(content) for name, content in contents.items()}
    return Rendition(
        *source.size,
        facts,
        tuple(variant(step, source.size, sizes[name]) for step, name in names.items()),
        contents,
    )


def _run(step: Step, source: Source, inputs: list[Future[Any]]) -> Any:
    if isinstance(step.makes, Decoding):
        return decode(source)
    [picture] = (result.result() for result in inputs)
    match step.makes:
        case Size() as size:
            return resize(picture, size, source.size)
        case Encoding() as encoding:
            return encode(picture, encoding)
        case Fact() as fact:
            return _FACTS[fact](_opaque(picture))


def resize(picture: Pixels, size: Size, original: tuple[int, int]) -> Pixels:
    """Returns a picture in the size of a variant.

    `original` is the width and height of the upright photo before any resizing.
    """
    target = size.fit(*original)
    if size.square:
        picture = _middle(picture)
    return shrink(picture, target)


def _middle(pixels: Pixels) -> Pixels:
    """Returns the largest centred square."""
    height, width = pixels.shape[:2]
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return pixels[top : top + side, left : left + side]


def encode(pixels: Pixels, encoding: Encoding) -> bytes:
    """Encodes a picture.

    Raises:
        MemoryError: the memory limit is too low for the encoder.
    """
    pixels = _opaque(pixels) if encoding is JPEG or pixels.shape[2] == 3 else unpremultiply(pixels)
    try:
        encoded, content = cv2.imencode(f".{encoding.extension}", pixels, _PARAMETERS[encoding])
    except cv2.error as error:
        raise MemoryError from error
    if not encoded:
        # Encoders accept every picture, so a failure can only mean too little memory.
        raise MemoryError
    return content.tobytes()


def _opaque(pixels: Pixels) -> Pixels:
    """Returns a picture without alpha, on a white background if it has transparency."""
    if pixels.shape[2] == 3:
        return pixels
    white = cv2.cvtColor(255 - pixels[..., 3], cv2.COLOR_GRAY2BGR)
    return cv2.add(pixels[..., :3], white)
