"""The lowest id of new posts, and the division of ids into batches."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from services.chassis.database.ids import least_id

SIGNATURES = 500
"""How many timelines one script polls. It takes Valkey one or two milliseconds."""

_LONGEST_PUBLICATION = timedelta(minutes=10)
"""Maximum time from a post's creation to its publication, which waits for its media. If an older
post appears in a feed, it is not new: the reader has followed its author, or a newer entry was
removed."""


def oldest_new_id() -> int:
    """Returns the lowest id that a post published now may have."""
    return least_id(datetime.now(UTC) - _LONGEST_PUBLICATION)


def chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Divides ids into chunks of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
