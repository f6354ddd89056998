"""Limits how many long calls of one type (uploads, watches) a process serves concurrently."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from services.chassis.errors import MeshError


class TooManyStreams(MeshError):
    """The limit of open streams is reached, for the user or for the process."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=5.0)


class OpenStreams:
    """Limits the open streams of one type in this process, in total and per user.

    The limit per user keeps one user from using up the limit of the process.
    """

    def __init__(self, name: str, *, max_open: int, max_per_user: int) -> None:
        """Creates a counter.

        Args:
            name: the type of stream, in the plural, for error messages.
            max_open: the maximum number of open streams in total.
            max_per_user: the maximum number of open streams of one user.
        """
        self._name = name
        self._max_open = max_open
        self._max_per_user = max_per_user
        self._count_of: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._count_of.total()

    @contextmanager
    def opened_by(self, user_id: int) -> Iterator[None]:
        """Counts a stream of a user while the block runs.

        Raises:
            TooManyStreams: the limit of the user or of the process is reached.
        """
        # Checks the user's limit first, because the user can act on that error.
        if self._count_of[user_id] >= self._max_per_user:
            raise TooManyStreams(
                f"You have {self._max_per_user} {self._name} open, the limit for one user: "
                "close one, or wait until one ends."
            )
        if self.count >= self._max_open:
            raise TooManyStreams(f"Too many {self._name} are open now; try again in a few seconds.")
        self._count_of[user_id] += 1
        try:
            yield
        finally:
            self._count_of[user_id] -= 1
            if not self._count_of[user_id]:
                del self._count_of[user_id]
