"""The circuit breaker, with a fake clock."""

import asyncio
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.chassis.breaker import Attempt, Breaker
from services.chassis.errors import Unavailable

pytestmark = pytest.mark.prove

EXAMPLES = int(os.environ.get("PHOTOMESH_EXAMPLES", "40"))

_THRESHOLD, _PATIENCE, _SHORTEST, _LONGEST = 3, 0.25, 0.1, 1.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock) -> Breaker:
    return make_breaker(clock)


def make_breaker(clock: Clock) -> Breaker:
    return Breaker(
        "The part",
        threshold=_THRESHOLD,
        patience=_PATIENCE,
        shortest=_SHORTEST,
        longest=_LONGEST,
        clock=clock,
        chance=lambda _, longest: longest,
    )


def end(attempt: Attempt, error: BaseException | None) -> None:
    attempt.__exit__(type(error) if error else None, error, None)


class Part:
    """A dependency. Tests control its responses to probes."""

    def __init__(self) -> None:
        self.probes: list[asyncio.Future[None]] = []

    async def probe(self) -> None:
        self.probes.append(asyncio.get_running_loop().create_future())
        await self.probes[-1]

    async def respond(self, error: Exception | None = None) -> None:
        """Ends the pending probe."""
        [probe] = self.probes
        self.probes.clear()
        probe.set_exception(error) if error else probe.set_result(None)
        await turns()


@pytest.fixture
def part() -> Part:
    return Part()


async def turns() -> None:
    """Runs the event loop for some iterations, which suffices for tasks without I/O."""
    for _ in range(10):
        await asyncio.sleep(0)


async def never() -> None:
    pytest.fail("no probe is due")


def fail(breaker: Breaker) -> None:
    with pytest.raises(Unavailable), breaker.call(probe=never):
        raise Unavailable("The part")


def is_rejected(breaker: Breaker, probe=never) -> bool:
    try:
        end(breaker.call(probe=probe), asyncio.CancelledError())
    except Unavailable:
        return True
    return False


def test_it_opens_after_failures_in_a_row_and_only_then(breaker):
    for _ in range(10):
        for _ in range(_THRESHOLD - 1):
            fail(breaker)
        with breaker.call(probe=never):
            pass
    assert not breaker.is_open

    for _ in range(_THRESHOLD):
        fail(breaker)
    assert breaker.is_open
    assert is_rejected(breaker)


def test_an_error_response_is_not_a_failure(breaker):
    for _ in range(_THRESHOLD):
        with pytest.raises(KeyError), breaker.call(probe=never):
            raise KeyError
    assert not breaker.is_open


def test_a_stalled_part_delays_few_callers_longer_than_the_patience(breaker, clock):
    waiting = [breaker.call(probe=never) for _ in range(_THRESHOLD)]
    clock.now += _PATIENCE + 0.01

    assert is_rejected(breaker)
    assert breaker.is_open

    # It was only slow: a late response closes the circuit.
    end(waiting[0], None)
    assert not is_rejected(breaker)


def test_callers_that_cancel_soon_do_not_open_it(breaker, clock):
    for _ in range(2 * _THRESHOLD):
        end(breaker.call(probe=never), asyncio.CancelledError())
        clock.now += _PATIENCE * 10
    assert not breaker.is_open


async def test_the_wait_between_probes_doubles_until_one_succeeds(breaker, clock, part):
    async def waits(count: int) -> list[float]:
        found = []
        for _ in range(_THRESHOLD):
            fail(breaker)
        for _ in range(count):
            opened = clock.now
            while not part.probes:
                clock.now += 0.01
                assert is_rejected(breaker, part.probe)
                await turns()
            await part.respond(Unavailable("The part"))
            found.append(round(clock.now - opened, 2))
        return found

    assert await waits(6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.011)
    clock.now += _LONGEST
    assert is_rejected(breaker, part.probe)
    await turns()
    await part.respond()
    assert not breaker.is_open
    assert await waits(2) == pytest.approx([0.1, 0.2], abs=0.011)


@pytest.mark.parametrize(("error", "is_failure"), [(Unavailable("It"), True), (KeyError(), False)])
async def test_one_probe_runs_in_the_background(breaker, clock, part, error, is_failure):
    for _ in range(_THRESHOLD):
        fail(breaker)
    assert is_rejected(breaker, part.probe)
    await turns()
    assert part.probes == []

    clock.now += _LONGEST
    # The first call starts it, and all calls are rejected meanwhile.
    assert [is_rejected(breaker, part.probe) for _ in range(3)] == [True] * 3
    await turns()
    await part.respond(error)
    assert is_rejected(breaker, part.probe) == is_failure


class Calls(RuleBasedStateMachine):
    """Calls and probes that end in any order, with any result."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.part = Part()
        self.breaker = make_breaker(self.clock)
        self.running: list[Attempt | asyncio.Future[None]] = []
        self.probe: asyncio.Future[None] | None = None
        self.failures = 0

    @rule()
    def begin(self):
        self.loop.run_until_complete(self._begin())

    async def _begin(self):
        was_open = self.breaker.is_open
        try:
            attempt = self.breaker.call(probe=self.part.probe)
        except Unavailable:
            assert self.breaker.is_open
        else:
            assert not was_open
            self.running.append(attempt)
        await turns()
        if self.part.probes:
            assert was_open
            assert self.probe is None, "two probes at once"
            self.probe = self.part.probes.pop()
            self.running.append(self.probe)

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 10**6),
        how=st.sampled_from([None, Unavailable("It"), KeyError(), asyncio.CancelledError()]),
    )
    def finish(self, which, how):
        self.loop.run_until_complete(self._finish(which, how))

    async def _finish(self, which, how):
        attempt = self.running.pop(which % len(self.running))
        if attempt is self.probe:
            self.probe = None
        if isinstance(attempt, Attempt):
            end(attempt, how)
        elif isinstance(how, asyncio.CancelledError):
            attempt.cancel()
        elif how:
            attempt.set_exception(how)
        else:
            attempt.set_result(None)
        await turns()
        if how is None or isinstance(how, KeyError):
            # The part responds, and the result of an earlier probe no longer matters.
            assert not self.breaker.is_open
            self.probe = None
            self.failures = 0
        elif isinstance(how, Unavailable):
            self.failures += 1

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def a_few_failures_open_it(self):
        if self.failures >= _THRESHOLD:
            assert self.breaker.is_open

    def teardown(self):
        """Once the part responds, the circuit closes within the longest wait."""
        self.loop.run_until_complete(self._teardown())
        self.loop.close()

    async def _teardown(self):
        while self.running:
            await self._finish(0, asyncio.CancelledError())
        # Attempts that were cancelled late can make the next call open it.
        await self._begin()
        self.clock.now += _LONGEST
        await self._begin()
        while self.running:
            await self._finish(0, None)
        assert not self.breaker.is_open
        assert not is_rejected(self.breaker)


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
