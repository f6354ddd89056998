"""The limits of uploads, for all upload methods. GetUploadLimits returns them to clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from services.media.pipeline.header import GUARANTEED_PIXELS, MAX_PIXELS
from services.media.sniffing import SUPPORTED_TYPES

_MIB = 2**20

UNDECLARED = "application/octet-stream"
"""The content type of a file whose type was not declared."""


@dataclass(frozen=True)
class UploadLimits:
    """The limits of all upload methods; sizes in bytes."""

    form_bytes: int = 32 * _MIB
    """The largest file in one form."""
    max_bytes: int = 4 * 2**30
    """The largest file in parts or in a stream."""
    part_bytes: int = 5 * _MIB
    """The size of every part except the last: the minimum that S3 accepts, with at most 10,000
    parts per file. A stream holds three parts in memory, two of which are being sent to S3; its
    total memory must stay under 24 MiB."""
    chunk_bytes: int = 4 * _MIB
    """The largest message of a stream."""
    content_types: tuple[str, ...] = (*SUPPORTED_TYPES, UNDECLARED)
    """The types that a client may declare. For the last one, the content determines the type."""
    max_pixels: int = MAX_PIXELS
    """The largest picture that the worker tries to decode."""
    sure_pixels: Mapping[str, int] = field(
        default_factory=lambda: {
            name: GUARANTEED_PIXELS[file_type] for name, file_type in SUPPORTED_TYPES.items()
        }
    )
    """The largest picture of each type that the worker can always decode."""
    form_life: timedelta = timedelta(minutes=10)
    """How long an upload form is valid."""
    part_life: timedelta = timedelta(hours=1)
    """How long the URL of a part is valid."""
    abandoned_after: timedelta = timedelta(hours=24)
    """The age at which an upload that is not completed is aborted."""
    open_uploads: int = 1_000
    """How many uploads of one account may be open, over all upload methods: enough for a phone's
    album and the uploads that it abandons within a day. N concurrent calls may exceed it by N."""
    streams: int = 64
    """How many streamed uploads one process serves at a time."""
    streams_per_account: int = 6
    """How many streamed uploads of one account a process serves at a time. Browsers open at most 6
    HTTP/1.1 connections to a host, and fewer streams saturate a phone's uplink."""
    stream_bytes_per_second: int = 2 * 1024
    """The minimum average speed of a stream. An EDGE uplink carries 10 to 20 KiB/s, which gives
    each of six concurrent streams about 2 KiB/s or more."""
    stream_patience: timedelta = timedelta(seconds=60)
    """How long a stream may send nothing. `paced` describes how this relates to the speed."""

    def part_count(self, size_bytes: int) -> int:
        """Returns the number of parts of a file; at least 1."""
        return max(1, -(-size_bytes // self.part_bytes))

    def part_size(self, number: int, size_bytes: int) -> int:
        """Returns the size in bytes of a part. Part numbers start at 1."""
        return min(self.part_bytes, size_bytes - (number - 1) * self.part_bytes)


LIMITS = UploadLimits()
