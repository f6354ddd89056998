"""Limits how many long calls of one type (uploads, watches) a process serves at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from services.chassis.errors import MeshError


class TooManyStreams(MeshError):
    """The limit of open streams is reached, for the account or for the process."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=5.0)


class OpenStreams:
    """Counts the open streams of one type in this process, in total and per account.

    The limit per account keeps one account from using up the limit of the process.
    """

    def __init__(self, kind: str, *, most: int, of_one_account: int) -> None:
        """Creates a counter.

        Args:
            kind: the type of stream, in the plural, for error messages.
            most: how many streams may be open in total.
            of_one_account: how many streams of one account may be open.
        """
        self._kind = kind
        self._most = most
        self._of_one_account = of_one_account
        self._count_of: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._count_of.total()

    @contextmanager
    def opened_by(self, account_id: int) -> Iterator[None]:
        """Counts a stream of an account while the block runs.

        Raises:
            TooManyStreams: the limit of the account or of the process is reached.
        """
        # Checks the account's limit first, because its owner can act on that error.
        if self._count_of[account_id] >= self._of_one_account:
            raise TooManyStreams(
                f"You have {self._of_one_account} {self._kind} open, the most for one account: "
                "end one, or wait until one ends."
            )
        if self.count >= self._most:
            raise TooManyStreams(f"Too many {self._kind} are open now; try again in a few seconds.")
        self._count_of[account_id] += 1
        try:
            yield
        finally:
            self._count_of[account_id] -= 1
            if not self._count_of[account_id]:
                del self._count_of[account_id]
