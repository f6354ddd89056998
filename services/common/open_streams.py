"""Limits how many long calls of one kind (uploads, watches) a process serves at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from services.common.errors import MeshError


class TooManyStreams(MeshError):
    """The account, or all accounts together, have as many streams open as are served."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=5.0)


class OpenStreams:
    """The open streams of one kind in this process, counted per account.

    The limit per account leaves room for others however many one account asks for.
    """

    def __init__(self, kind: str, *, most: int, of_one_account: int) -> None:
        """Takes the kind in the plural, for error messages, and how many may be open."""
        self._kind = kind
        self._most = most
        self._of_one_account = of_one_account
        self._count_of: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """How many are open."""
        return self._count_of.total()

    @contextmanager
    def opened_by(self, account_id: int) -> Iterator[None]:
        """Counts a stream of an account for as long as the block lasts, however it ends.

        Raises:
            TooManyStreams: the account has too many open already, or all accounts together.
        """
        # The account's own limit first: its owner can do something about it.
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
