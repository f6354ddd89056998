"""Ids: which may belong to new posts, and how many are processed at a time."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from services.chassis.database.ids import least_id

SIGNATURES = 500
"""How many timelines one script polls: one or two milliseconds of the server's time."""

_LONGEST_PUBLICATION = timedelta(minutes=10)
"""Maximum time from a post's creation to its publication, which waits for its media. An older post
that appears is not new: its author was followed, or an entry above it was removed."""


def oldest_new_id() -> int:
    """Returns the lowest id that a post published now may have."""
    return least_id(datetime.now(UTC) - _LONGEST_PUBLICATION)


def chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Divides ids into chunks of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
