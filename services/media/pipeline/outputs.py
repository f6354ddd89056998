"""What is made of a photo, as data: steps, what each takes, and their versions.

A step's result follows from its file and from the steps behind it alone. So what a step makes is
stored under a name that tells the versions of all of them (`fingerprint`): a run that finds that
name in the bucket need not make it again, and raising a version gives a new name, which no cache
has seen. A new size or encoding is a new line in SIZES or ENCODINGS, and `services.media.reprocess`
makes it for the photos that are there already.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_MOST_HEIGHT = 16_383
"""WebP has no room for more."""


class Failure(StrEnum):
    """Why a file cannot be processed; the names of photomesh.media.v1.MediaFailure."""

    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    CORRUPT = "CORRUPT"
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    TOO_EXPENSIVE = "TOO_EXPENSIVE"


class Unprocessable(Exception):
    """Nothing can be made of a file, however often it is tried."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True)
class Size:
    """How large a variant is. None is larger than its original."""

    name: str
    width: int
    """In pixels, at most."""
    square: bool = False
    """Whether it is cut to the largest square in the picture's middle."""
    version: int = 1

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Returns the variant's width and height for a picture of this width and height."""
        if self.square:
            side = min(width, height, self.width)
            return side, side
        scale = min(1.0, self.width / width, _MOST_HEIGHT / height)
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Encoding:
    """How a variant is written."""

    content_type: str
    extension: str
    quality: int
    """0 to 100, as the encoder counts."""
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
# As good to the eye as the others in two thirds of their bytes; and at the speed that it is
# written with it costs less time than WebP.
AVIF = Encoding("image/avif", "avif", quality=55)
ENCODINGS = (JPEG, WEBP, AVIF)


class Fact(StrEnum):
    """What is told of a photo beside its variants."""

    BLURHASH = "blurhash"
    DOMINANT_COLOUR = "dominant_colour"
    PERCEPTUAL_HASH = "perceptual_hash"


@dataclass(frozen=True)
class Decoding:
    """The picture: decoded, upright, sRGB, no larger than the largest variants need."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline."""

    name: str
    makes: Decoding | Size | Encoding | Fact
    version: int
    """Raised when the step makes something else of the same inputs."""
    inputs: tuple[str, ...] = ()
    """The steps whose results it takes; none: it takes the file."""


_PICTURE = "picture"

_SKETCH = "w600"
"""Large enough for every fact."""


def _steps() -> Iterator[Step]:
    yield Step(_PICTURE, Decoding(), version=1)
    # The largest first: it takes longest, and the others are made beside it.
    for size in reversed(SIZES):
        yield Step(size.name, size, size.version, inputs=(_PICTURE,))
        for encoding in ENCODINGS:
            name = f"{size.name}.{encoding.extension}"
            yield Step(name, encoding, encoding.version, inputs=(size.name,))
    for fact in Fact:
        yield Step(fact, fact, version=1, inputs=(_SKETCH,))


STEPS = {step.name: step for step in _steps()}
"""By their names, each behind its inputs."""


def fingerprint(name: str) -> str:
    """Returns 8 hex digits that change when the version of a step or of one behind it does."""
    return _digest(sorted(_behind(STEPS[name])))


def _behind(step: Step) -> set[str]:
    lines = {f"{step.name}={step.version}<{','.join(step.inputs)}"}
    return lines.union(*(_behind(STEPS[name]) for name in step.inputs))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


RECIPE = _digest(sorted(set().union(*(_behind(step) for step in STEPS.values()))))
"""Tells this set of steps and versions from every other: what is stored with what they made."""


VARIANT_STEPS = {
    f"{size.name}.{encoding.extension}": (size, encoding)
    for size in SIZES
    for encoding in ENCODINGS
}
"""The steps that make variants, smallest first."""


def object_name(size: Size, encoding: Encoding) -> str:
    """Returns a variant's S3 key behind the photo's own prefix, such as w600.0f3c2d1b.jpg."""
    step = f"{size.name}.{encoding.extension}"
    return f"{size.name}.{fingerprint(step)}.{encoding.extension}"


@dataclass(frozen=True)
class Variant:
    """One size and encoding of one photo."""

    name: str
    """The size's name."""
    content_type: str
    object_name: str
    """Its S3 key behind the photo's own prefix."""
    width: int
    height: int
    size_bytes: int


def variant(step: str, picture: tuple[int, int], size_bytes: int) -> Variant:
    """Returns what a step makes of an upright picture of this width and height.

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
    """A step is done."""

    step: str
    variant: Variant | None = None
    """What it makes, if that is to be stored."""
    content: bytes = b""
    """The variant's."""


@dataclass(frozen=True)
class Rendition:
    """All that was made of one photo."""

    width: int
    """Of the upright photo, in pixels, before any resizing."""
    height: int
    facts: dict[Fact, str]
    variants: tuple[Variant, ...]
    """Smallest first."""
    contents: dict[str, bytes]
    """Of the variants that were not there before, by their object names."""
