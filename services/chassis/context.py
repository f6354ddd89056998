"""The context of the current call: trace, user, deadline. Any code can read it."""

import asyncio
import re
import secrets
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from services.chassis.errors import TokenMissing

USER_ID = "x-photomesh-user-id"
"""The metadata key of the user's id. The gateway sets it from a verified token."""

TRACEPARENT = "traceparent"
"""The metadata key of W3C Trace Context."""

Result = TypeVar("Result")

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class CallContext:
    """The context of one call, or of the handling of one event."""

    trace_id: str
    """32 hexadecimal digits."""
    user_id: int = 0
    """The signed-in user; 0: no user is signed in."""
    deadline: float | None = None
    """When the caller stops waiting, by the event loop's clock; None: there is no deadline."""
    event: str = ""
    """The unique id of the event being handled. A redelivered event keeps its id; a republished
    one, such as a replayed dead letter, gets a new id."""

    def traceparent(self) -> str:
        """Returns the header for the next hop, with a new span id."""
        return f"00-{self.trace_id}-{secrets.token_hex(8)}-01"

    def remaining(self, limit: float) -> float:
        """Returns the seconds until the deadline, at least 0 and at most `limit`."""
        if self.deadline is None:
            return limit
        return max(0.0, min(limit, self.deadline - asyncio.get_running_loop().time()))


_current: ContextVar[CallContext | None] = ContextVar("call", default=None)


def current() -> CallContext:
    """Returns the current call. Outside any call, creates one with a new trace id."""
    call = _current.get()
    if call is None:
        call = CallContext(trace_id=secrets.token_hex(16))
        _current.set(call)
    return call


def enter_new_trace() -> None:
    """Enters a context of its own, for work that no call causes, such as one run of a job."""
    enter(CallContext(trace_id=secrets.token_hex(16)))


def enter(call: CallContext) -> None:
    """Makes `call` the current call for this task and the tasks that it starts."""
    _current.set(call)


def detached(work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
    """Starts a task in the context of the current call, but without its deadline."""
    copy = copy_context()
    copy.run(lambda: enter(replace(current(), deadline=None)))
    return asyncio.create_task(work, context=copy)


def signed_in() -> int:
    """Returns the id of the user who makes the current call.

    Raises:
        TokenMissing: no user is signed in.
    """
    user_id = current().user_id
    if not user_id:
        raise TokenMissing
    return user_id


def trace_id_of(traceparent: str | None) -> str:
    """Returns the trace id of a header, or a new one if the header is missing or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match.group(1) if match else secrets.token_hex(16)
