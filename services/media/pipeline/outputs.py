"""The outputs of the pipeline as data: steps, their inputs, and their versions.

The result of a step depends only on the file and on the steps before it. Its object name contains a
hash of the versions of all these steps (`fingerprint`): a run that finds the name in the bucket
does not make the object again, and a raised version gives a new name, which no cache contains. To
add a size or an encoding, add a line to SIZES or ENCODINGS; `services.media.reprocess` makes it for
existing photos.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_MAX_HEIGHT = 16_383
"""The format limit of WebP."""


class Failure(StrEnum):
    """Why a file cannot be processed; the names of photomesh.media.v1.MediaFailure."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    CORRUPT = "CORRUPT"
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    TOO_EXPENSIVE = "TOO_EXPENSIVE"


class Unprocessable(Exception):
    """The file cannot be processed. Retrying does not help."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True)
class Size:
    """The size of a variant, which is never larger than its original."""

    name: str
    width: int
    """The largest width in pixels."""
    square: bool = False
    """Whether the variant is cropped to the largest centred square."""
    version: int = 1

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Returns the variant's width and height for a picture of this width and height."""
        if self.square:
            side = min(width, height, self.width)
            return side, side
        scale = min(1.0, self.width / width, _MAX_HEIGHT / height)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Encoding:
    """The format of a variant."""

    content_type: str
    extension: str
    quality: int
    """0 to 100, on the encoder's scale."""
    version: int = 1


SIZES = (
    Size("square200", 200, square=True),
    Size("w600", 600),
    Size("w1080", 1080),
    Size("w2048", 2048),
)
"""Smallest first."""

JPEG = Encoding("image/jpeg", "jpg", quality=82)
WEBP = Encoding("image/webp", "webp", quality=80)
# Looks as good as the others at two thirds of their size, and encodes faster than WebP at the speed
# that `render` sets.
AVIF = Encoding("image/avif", "avif", quality=55)
ENCODINGS = (JPEG, WEBP, AVIF)


class Fact(StrEnum):
    """A property of a photo that is stored with its variants."""

    BLURHASH = "blurhash"
    DOMINANT_COLOUR = "dominant_colour"
    PERCEPTUAL_HASH = "perceptual_hash"


@dataclass(frozen=True)
class Decoding:
    """The decoded picture: upright, sRGB, no larger than the largest variants need."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline."""

    name: str
    makes: Decoding | Size | Encoding | Fact
    version: int
    """Increment it when the step gives another result for the same inputs."""
    inputs: tuple[str, ...] = ()
    """The steps whose results are the inputs; empty: the file is the input."""


_PICTURE = "picture"

_FACT_INPUT = "w600"
"""Large enough for every fact."""


def _steps() -> Iterator[Step]:
    yield Step(_PICTURE, Decoding(), version=1)
    # The largest first: it takes longest, and the others run in parallel with it.
    for size in reversed(SIZES):
        yield Step(size.name, size, size.version, inputs=(_PICTURE,))
        for encoding in ENCODINGS:
            name = f"{size.name}.{encoding.extension}"
            yield Step(name, encoding, encoding.version, inputs=(size.name,))
    for fact in Fact:
        yield Step(fact, fact, version=1, inputs=(_FACT_INPUT,))


STEPS = {step.name: step for step in _steps()}
"""All steps by name, each after its inputs."""


def fingerprint(name: str) -> str:
    """Returns 8 hex digits that change with the version of a step or of its transitive inputs."""
    return _digest(sorted(_lineage(STEPS[name])))


def _lineage(step: Step) -> set[str]:
    lines = {f"{step.name}={step.version}<{','.join(step.inputs)}"}
    return lines.union(*(_lineage(STEPS[name]) for name in step.inputs))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


RECIPE = _digest(sorted(set().union(*(_lineage(step) for step in STEPS.values()))))
"""Identifies this set of steps and versions. It is stored with each media item that they made."""


VARIANT_STEPS = {
    f"{size.name}.{encoding.extension}": (size, encoding)
    for size in SIZES
    for encoding in ENCODINGS
}
"""The steps that make variants, smallest first."""


def object_name(size: Size, encoding: Encoding) -> str:
    """Returns a variant's S3 key after the photo's prefix, such as w600.0f3c2d1b.jpg."""
    step = f"{size.name}.{encoding.extension}"
    return f"{size.name}.{fingerprint(step)}.{encoding.extension}"


@dataclass(frozen=True)
class Variant:
    """One size and encoding of one photo."""

    name: str
    """The size's name."""
    content_type: str
    object_name: str
    """The S3 key after the photo's prefix."""
    width: int
    height: int
    size_bytes: int


def variant(step: str, picture: tuple[int, int], size_bytes: int) -> Variant:
    """Returns the variant that a step makes from an upright picture of this width and height.

    Raises:
        KeyError: the step makes no variant.
    """
    size, encoding = VARIANT_STEPS[step]
    return Variant(
        size.name,
        encoding.content_type,
        object_name(size, encoding),
        *size.fit(*picture),
        size_bytes,
    )


@dataclass(frozen=True)
class Made:
    """A finished step."""

    step: str
    variant: Variant | None = None
    """The variant that the step made; None: it made none."""
    content: bytes = b""
    """The content of the variant."""


@dataclass(frozen=True)
class Rendition:
    """Everything that was made from one photo."""

    width: int
    """The width of the upright photo in pixels, before any resizing."""
    height: int
    """The height of the upright photo in pixels, before any resizing."""
    facts: dict[Fact, str]
    variants: tuple[Variant, ...]
    """Smallest first."""
    contents: dict[str, bytes]
    """The content of the variants that were not stored before, by object name."""
