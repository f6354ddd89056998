"""What is known of the call at hand, wherever in the code: its trace, its user, its deadline."""

import asyncio
import re
import secrets
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from services.common.errors import TokenMissing

USER_ID = "x-photomesh-user-id"
"""Metadata that names the user; the gateway sets it from a checked token."""

TRACEPARENT = "traceparent"
"""Metadata of W3C Trace Context."""

Result = TypeVar("Result")

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class CallContext:
    """One call, or one event being handled."""

    trace_id: str
    """32 hexadecimal digits."""
    user_id: int = 0
    """Who is signed in; 0: nobody."""
    deadline: float | None = None
    """When the caller stops waiting, by the event loop's clock."""
    event: str = ""
    """What tells the event that is being handled from all others, also when it comes again. An
    event that is published once more, by whoever replays a dead letter, say, is another one."""

    def traceparent(self) -> str:
        """Returns the header for the next hop, with a new span id."""
        return f"00-{self.trace_id}-{secrets.token_hex(8)}-01"

    def remaining(self, most: float) -> float:
        """Returns how many seconds the next hop may take, at most `most`."""
        if self.deadline is None:
            return most
        return max(0.0, min(most, self.deadline - asyncio.get_running_loop().time()))


_current: ContextVar[CallContext | None] = ContextVar("call", default=None)


def current() -> CallContext:
    """Returns the call at hand; outside of any, a new one with a trace of its own."""
    call = _current.get()
    if call is None:
        call = CallContext(trace_id=secrets.token_hex(16))
        _current.set(call)
    return call


def enter(call: CallContext) -> None:
    """Makes `call` the one at hand, for this task and those that it starts."""
    _current.set(call)


def detached(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """Starts what several callers may wait for: the deadline of the first of them is not its own.

    Whoever waits shields it from their own end.
    """

    async def run() -> Result:
        enter(replace(current(), deadline=None))
        return await work

    return asyncio.create_task(run())


def signed_in() -> int:
    """Returns the id of the user who makes the call at hand.

    Raises:
        TokenMissing: nobody is signed in.
    """
    user_id = current().user_id
    if not user_id:
        raise TokenMissing
    return user_id


def trace_id_of(traceparent: str | None) -> str:
    """Returns the trace id of a header, or a new one when there is none or it is malformed."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match.group(1) if match else secrets.token_hex(16)
