"""The circuit breaker under a clock of our own."""

import asyncio
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.chassis.breaker import Attempt, Breaker, State
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


def fail(breaker: Breaker) -> None:
    with pytest.raises(Unavailable), breaker.attempt():
        raise Unavailable("The part")


def is_refused(breaker: Breaker) -> bool:
    try:
        end(breaker.attempt(), asyncio.CancelledError())
    except Unavailable:
        return True
    return False


def test_it_opens_after_failures_in_a_row_and_only_then(breaker):
    for _ in range(10):
        for _ in range(_THRESHOLD - 1):
            fail(breaker)
        with breaker.attempt():
            pass
    assert breaker.state is State.CLOSED

    for _ in range(_THRESHOLD):
        fail(breaker)
    assert breaker.state is State.OPEN
    assert is_refused(breaker)


def test_an_error_that_is_an_answer_is_no_failure(breaker):
    for _ in range(_THRESHOLD):
        with pytest.raises(KeyError), breaker.attempt():
            raise KeyError
    assert breaker.state is State.CLOSED


def test_a_stalled_part_costs_few_callers_more_than_the_patience(breaker, clock):
    waiting = [breaker.attempt() for _ in range(_THRESHOLD)]
    clock.now += _PATIENCE + 0.01

    assert is_refused(breaker)
    assert breaker.state is State.OPEN

    # It was only slow: what comes back late closes the circuit.
    end(waiting[0], None)
    assert not is_refused(breaker)


def test_callers_who_go_away_soon_open_nothing(breaker, clock):
    for _ in range(2 * _THRESHOLD):
        end(breaker.attempt(), asyncio.CancelledError())
        clock.now += _PATIENCE * 10
    assert breaker.state is State.CLOSED


def test_probes_come_ever_more_rarely_and_a_success_forgets_all(breaker, clock):
    def waits(count: int) -> list[float]:
        found = []
        for _ in range(_THRESHOLD):
            fail(breaker)
        for _ in range(count):
            opened = clock.now
            while is_refused(breaker):
                clock.now += 0.01
            fail(breaker)
            found.append(round(clock.now - opened, 2))
        return found

    assert waits(6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.011)
    clock.now += _LONGEST
    with breaker.attempt():
        assert breaker.state is State.PROBING
        assert is_refused(breaker)
    assert breaker.state is State.CLOSED
    assert waits(2) == pytest.approx([0.1, 0.2], abs=0.011)


async def test_nobody_waits_for_the_probe(breaker, clock):
    answers: list[asyncio.Future[None]] = []

    async def find_out():
        answers.append(asyncio.get_running_loop().create_future())
        await answers[-1]

    def is_let_through() -> bool:
        try:
            end(breaker.call(find_out=find_out), None)
        except Unavailable:
            return False
        return True

    assert is_let_through()
    for _ in range(_THRESHOLD):
        fail(breaker)
    assert not is_let_through()
    await asyncio.sleep(0)
    assert answers == []

    for error, after in ((Unavailable("The part"), False), (KeyError(), True)):
        clock.now += _LONGEST
        # The first of them has it found out, but none is let through meanwhile.
        assert [is_let_through() for _ in range(3)] == [False] * 3
        await asyncio.sleep(0)
        [answer] = answers
        answers.clear()
        answer.set_exception(error)
        # Turns of the event loop, not time: what follows needs no other event.
        for _ in range(10):
            await asyncio.sleep(0)
        assert is_let_through() == after


class Calls(RuleBasedStateMachine):
    """Any calls, ending in any order and way."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = make_breaker(self.clock)
        self.running: list[Attempt] = []
        self.probe: Attempt | None = None
        self.failures = 0
        self.last_sign_of_life = 0.0

    @rule()
    def begin(self):
        before = self.breaker.state
        try:
            attempt = self.breaker.attempt()
        except Unavailable:
            assert self.breaker.state is not State.CLOSED
            return
        if before is not State.CLOSED or self.breaker.state is State.PROBING:
            assert self.probe is None, "two probes at once"
            self.probe = attempt
        self.running.append(attempt)

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 10**6),
        how=st.sampled_from([None, Unavailable("It"), KeyError(), asyncio.CancelledError()]),
    )
    def finish(self, which, how):
        attempt = self.running.pop(which % len(self.running))
        if attempt is self.probe:
            self.probe = None
        end(attempt, how)
        if how is None or isinstance(how, KeyError):
            # Whatever it was, the part lives, and who probed before no longer decides.
            assert self.breaker.state is State.CLOSED
            self.probe = None
            self.failures = 0
        elif isinstance(how, Unavailable):
            self.failures += 1

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def a_few_failures_close_it_and_probing_has_its_probe(self):
        assert (self.breaker.state is State.PROBING) == (self.probe is not None)
        if self.failures >= _THRESHOLD:
            assert self.breaker.state is not State.CLOSED

    def teardown(self):
        """Whatever happened: once the part answers, the circuit closes within the longest wait."""
        for attempt in self.running:
            end(attempt, asyncio.CancelledError())
        # Those who gave up late may have the next call open it.
        is_refused(self.breaker)
        self.clock.now += _LONGEST
        with self.breaker.attempt():
            pass
        assert self.breaker.state is State.CLOSED
        assert not is_refused(self.breaker)


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
