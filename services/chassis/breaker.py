"""A circuit breaker, which stops calling a dependency after several failures in a row.

The asyncio libraries have two shortcomings. They count only completed failures, so while a peer
stalls, every caller waits for the whole timeout until the first calls fail. After the wait, they
let all calls through, although a single probe is enough.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from services.chassis.context import detached
from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs

_log = logs.logger(__name__)


class Breaker:
    """Guards the calls to one dependency: `with breaker.call(probe=...): ...`.

    The circuit opens in two cases: `threshold` attempts in a row failed with Unavailable; or
    `threshold` attempts started, none has succeeded since, and the newest of them has waited longer
    than `patience`. Any other error is a response, so it counts as a success.

    An open circuit rejects calls immediately. It waits `shortest` seconds before the first probe,
    and doubles the wait after each failed probe, up to `longest`. Random jitter shortens each wait
    by up to half, so that the replicas of a service do not probe at the same time. Probes run in
    the background, and any response to a probe closes the circuit.

    Args:
        part: the dependency's name in error messages, such as "The cache".
        threshold: how many attempts must fail or stall.
        patience: how long an attempt may wait before it counts as stalled, in seconds.
        shortest: the wait before the first probe, in seconds.
        longest: the longest wait before a probe, in seconds.
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
        self._is_open = False
        self._failures = 0
        # The start times of the first `threshold` attempts since the last success.
        self._unanswered: list[float] = []
        self._wait = shortest
        self._retry_at = 0.0
        self._probe: Attempt | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are rejected."""
        return self._is_open

    def call(self, *, probe: Callable[[], Awaitable[object]]) -> "Attempt":
        """Returns a context manager for one call.

        Args:
            probe: calls the dependency to check whether it responds. Started if the circuit is open
                and a probe is due.

        Raises:
            Unavailable: the circuit is open.
        """
        now = self._clock()
        attempt = Attempt(self, now)
        if not self._is_open:
            if len(self._unanswered) < self._threshold:
                self._unanswered.append(now)
                return attempt
            if now - self._unanswered[-1] <= self._patience:
                return attempt
            self._open("no responses")
        elif self._probe is None and now >= self._retry_at:
            self._probe = attempt
            self._probing = detached(self._run(attempt, probe))
        raise Unavailable(self._part)

    async def _run(self, attempt: "Attempt", probe: Callable[[], Awaitable[object]]) -> None:
        with contextlib.suppress(Exception), attempt:
            await probe()

    def _open(self, why: str) -> None:
        if not self._is_open:
            _log.warning("circuit.opened", part=self._part, why=why)
        self._is_open = True
        self._probe = None
        self._retry_at = self._clock() + self._chance(self._wait / 2, self._wait)
        self._wait = min(2 * self._wait, self._longest)

    def _succeeded(self) -> None:
        # A call that started before the circuit opened also proves that the dependency responds.
        if self._is_open:
            _log.info("circuit.closed", part=self._part)
        self._is_open = False
        self._probe = None
        self._failures = 0
        self._unanswered.clear()
        self._wait = self._shortest

    def _failed(self, attempt: "Attempt") -> None:
        self._failures += 1
        if attempt is self._probe or (not self._is_open and self._failures >= self._threshold):
            self._open("calls fail")

    def _cancelled(self, attempt: "Attempt") -> None:
        # A call that is cancelled within `patience` shows nothing about the dependency.
        if attempt is self._probe:
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
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error_type is None or (
            issubclass(error_type, Exception) and not issubclass(error_type, Unavailable)
        ):
            self._breaker._succeeded()
        elif issubclass(error_type, Unavailable):
            self._breaker._failed(self)
        else:
            self._breaker._cancelled(self)
