"""A circuit breaker, which stops calling a dependency after several failures in a row.

The asyncio libraries have two shortcomings. They count only completed failures, so that a stalled
peer costs every caller the whole timeout until the first calls fail. After the wait they let all
calls through, where a single probe is enough.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Self

from services.chassis.context import detached
from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs

_log = logs.logger(__name__)


class State(StrEnum):
    """Which calls the circuit allows."""

    CLOSED = "closed"
    """All calls."""
    OPEN = "open"
    """No calls."""
    PROBING = "probing"
    """One call, whose result closes or reopens the circuit."""


class Breaker:
    """Guards the calls to one dependency: `with breaker.call(find_out=...): ...`.

    The circuit opens in two cases: `threshold` attempts in a row failed with Unavailable; or
    `threshold` attempts started, none has succeeded since, and the newest of them has waited longer
    than `patience`. Any other error is a response, and counts as a success.

    An open circuit rejects calls immediately. It waits `shortest` seconds before the first probe,
    and doubles the wait after each failed probe, up to `longest`. Random jitter shortens each wait
    by up to half, so that the processes of a service do not probe at the same time.

    Args:
        part: the dependency's name in error messages, such as "The cache".
        threshold: how many attempts must fail or stall.
        patience: seconds.
        shortest: seconds.
        longest: seconds.
        clock: returns the time in seconds.
        chance: returns a random number between two numbers.
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
        # The start times of the first `threshold` attempts since the last success.
        self._unanswered: list[float] = []
        self._wait = shortest
        self._retry_at = 0.0
        self._probe: Attempt | None = None
        self._finding_out: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """The current state. An open circuit probes on the first attempt after the wait."""
        return self._state

    def call(self, *, find_out: Callable[[], Awaitable[object]]) -> "Attempt":
        """Returns a context for one call, which is never the probe.

        When a probe is due, this method starts `find_out` in the background as the probe and
        rejects the call. Any response of the dependency counts as a success.

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
            _log.warning("circuit.opened", part=self._part, why=why)
        self._state = State.OPEN
        self._probe = None
        self._retry_at = self._clock() + self._chance(self._wait / 2, self._wait)
        self._wait = min(2 * self._wait, self._longest)

    def _succeeded(self) -> None:
        # This also applies to a call that started before the circuit opened: the dependency
        # responds.
        if self._state is not State.CLOSED:
            _log.info("circuit.closed", part=self._part)
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
        # A caller that cancels within `patience` says nothing about the dependency.
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
