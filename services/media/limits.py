"""What may be uploaded. Every door reads the limits here, and GetUploadLimits tells them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from services.media.pipeline.header import MOST_PIXELS, SURE_PIXELS
from services.media.sniffing import KINDS

_MIB = 2**20

UNTOLD = "application/octet-stream"
"""The type of a file whose type nobody has told."""


@dataclass(frozen=True)
class UploadLimits:
    """The limits of all doors; sizes in bytes."""

    form_bytes: int = 32 * _MIB
    """The largest file in one form."""
    most_bytes: int = 4 * 2**30
    """The largest file by any other door."""
    part_bytes: int = 5 * _MIB
    """All parts but the last. S3 takes no less and no more than 10,000 of them. Of a stream three
    are in memory, two on their way to S3: with all else that must stay under 24 MiB."""
    chunk_bytes: int = 4 * _MIB
    """One message of a stream."""
    content_types: tuple[str, ...] = (*KINDS, UNTOLD)
    """What may be declared; the last leaves it to the bytes."""
    most_pixels: int = MOST_PIXELS
    """The largest picture that is tried."""
    sure_pixels: Mapping[str, int] = field(
        default_factory=lambda: {name: SURE_PIXELS[kind] for name, kind in KINDS.items()}
    )
    """The largest picture of each type that is decoded in any case."""
    form_life: timedelta = timedelta(minutes=10)
    """How long S3 takes a form."""
    part_life: timedelta = timedelta(hours=1)
    """How long S3 takes a part's URL."""
    abandoned_after: timedelta = timedelta(hours=24)
    """After how long an upload that is not completed is given up."""
    open_uploads: int = 1_000
    """How many uploads of one account may be open, by all doors: a phone's album and what it has
    left behind within a day. Calls at the same moment may exceed it by their number."""
    streams: int = 64
    """How many files one process takes as streams at a time."""
    streams_of_one_account: int = 6
    """How many of them are one account's. Browsers open no more connections to a host by HTTP/1.1,
    and fewer already fill a phone's uplink."""
    stream_bytes_per_second: int = 2 * 1024
    """How fast a stream is at least, on average. EDGE carries 10 to 20 KiB/s up, so each of six
    streams at a time has 2 or more."""
    stream_patience: timedelta = timedelta(seconds=60)
    """How long a stream may be silent; see `paced` for how both work together."""

    def part_count(self, size_bytes: int) -> int:
        """Returns how many parts a file has; at least 1."""
        return max(1, -(-size_bytes // self.part_bytes))

    def part_size(self, number: int, size_bytes: int) -> int:
        """Returns the size of a file's part, numbered from 1, in bytes."""
        return min(self.part_bytes, size_bytes - (number - 1) * self.part_bytes)


LIMITS = UploadLimits()
