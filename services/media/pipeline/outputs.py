"""What is made of a photo: every size in every encoding. A new one is a new line here."""

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


SIZES = (
    Size("square200", 200, square=True),
    Size("w600", 600),
    Size("w1080", 1080),
)
"""Smallest first."""

JPEG = Encoding("image/jpeg", "jpg", quality=82)
WEBP = Encoding("image/webp", "webp", quality=80)
ENCODINGS = (JPEG, WEBP)


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


@dataclass(frozen=True)
class Rendition:
    """All that was made of one photo."""

    width: int
    """Of the upright photo, in pixels, before any resizing."""
    height: int
    files: tuple[tuple[Variant, bytes], ...]
    """Each variant and its content."""
