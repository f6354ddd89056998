"""A circuit breaker: once a part has failed a few times in a row, it is left alone for a while.

Written here, for the libraries for asyncio count only failures that have come back: a peer that
is stalled, not dead, costs every caller the whole timeout until then. They also let everybody in
once the wait is over, where one probe is enough.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Self

from services.common import logs
from services.common.context import detached
from services.common.errors import Unavailable

_log = logs.logger(__name__)


class State(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    """All do."""
    OPEN = "open"
    """None does."""
    PROBING = "probing"
    """One does, and decides."""


class Breaker:
    """Guards the calls to one part: `with breaker.call(find_out=...): ...`.

    It opens when `threshold` attempts failed with Unavailable and none succeeded in between; or
    when so many began, none has succeeded since, and the youngest of them has waited longer than
    `patience`. Any other error is an answer, and counts as a success.

    Open, it refuses at once, for `shortest` seconds at first and twice as long after each probe
    that fails, up to `longest`; less up to half of that by chance, so that the processes of a
    service do not probe at the same moment.

    Args:
        part: what it guards, as an error message names it, such as "The cache".
        threshold: how many attempts it takes.
        patience: seconds.
        shortest: seconds.
        longest: seconds.
        clock: tells seconds.
        chance: returns a number between two.
    """

    def __init__(
        self,
        part: str,
        *,
        threshold: int = 5,
        patience: float = 0.25,
        shortest: float = 0.1,
        longest: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._part = part
        self._threshold = threshold
        self._patience = patience
        self._shortest = shortest
        self._longest = longest
        self._clock = clock
        self._chance = chance
        self._state = State.CLOSED
        self._failures = 0
        # When the first `threshold` attempts since the last success began.
        self._unanswered: list[float] = []
        self._wait = shortest
        self._retry_at = 0.0
        self._probe: Attempt | None = None
        self._finding_out: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """What it does with the next attempt, unless the wait is over."""
        return self._state

    def call(self, *, find_out: Callable[[], Awaitable[object]]) -> "Attempt":
        """Returns a context for one call, which will not be the probe: nobody waits for that.

        When it is time for one, `find_out` is called beside. Whatever the part answers will do.

        Raises:
            Unavailable: the circuit is open.
        """
        attempt = self.attempt()
        if self._state is State.PROBING:
            self._finding_out = detached(self._find_out(attempt, find_out))
            raise Unavailable(self._part)
        return attempt

    async def _find_out(self, attempt: "Attempt", ask: Callable[[], Awaitable[object]]) -> None:
        with contextlib.suppress(Exception), attempt:
            await ask()

    def attempt(self) -> "Attempt":
        """Returns a context for one call, which may be the probe.

        Raises:
            Unavailable: the circuit is open.
        """
        now = self._clock()
        attempt = Attempt(self, now)
        if self._state is State.CLOSED:
            if len(self._unanswered) < self._threshold:
                self._unanswered.append(now)
            elif now - self._unanswered[-1] > self._patience:
                self._open("nothing comes back")
        if self._state is State.OPEN and now >= self._retry_at:
            self._state = State.PROBING
            self._probe = attempt
        elif self._state is not State.CLOSED:
            raise Unavailable(self._part)
        return attempt

    def _open(self, why: str) -> None:
        if self._state is State.CLOSED:
            _log.warning("a circuit opened", part=self._part, why=why)
        self._state = State.OPEN
        self._probe = None
        self._retry_at = self._clock() + self._chance(self._wait / 2, self._wait)
        self._wait = min(2 * self._wait, self._longest)

    def _succeeded(self) -> None:
        # Also when the call began before the circuit opened: the part answers.
        if self._state is not State.CLOSED:
            _log.info("a circuit closed", part=self._part)
        self._state = State.CLOSED
        self._probe = None
        self._failures = 0
        self._unanswered.clear()
        self._wait = self._shortest

    def _failed(self, attempt: "Attempt") -> None:
        self._failures += 1
        if attempt is self._probe or (
            self._state is State.CLOSED and self._failures >= self._threshold
        ):
            self._open("calls fail")

    def _gave_up(self, attempt: "Attempt") -> None:
        # A caller who goes away soon says nothing about the part.
        if attempt is self._probe:
            self._state = State.OPEN
            self._probe = None
        elif attempt.began in self._unanswered and self._clock() - attempt.began <= self._patience:
            self._unanswered.remove(attempt.began)


class Attempt:
    """One call through a breaker."""

    __slots__ = ("_breaker", "began")

    def __init__(self, breaker: Breaker, began: float) -> None:
        self._breaker = breaker
        self.began = began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, Unavailable)):
            self._breaker._succeeded()
        elif issubclass(kind, Unavailable):
            self._breaker._failed(self)
        else:
            self._breaker._gave_up(self)
