"""The interceptors, which surround the handler of every method, over gRPC and over REST.

An interceptor is a coroutine function. It takes the rest of the chain and the call. It awaits the
rest and returns the result, or raises an error. To add one, write the function and list it in
`INTERCEPTORS`, outermost first. One that is listed before `convert_errors` sees how the call ends
for its caller: the result, a `MeshError`, or a cancellation.

A call of any type passes each interceptor once, also if its requests or responses are a stream.
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from services.chassis import context
from services.chassis.errors import (
    CallerNotAllowed,
    DeadlineExceeded,
    Internal,
    MeshError,
    Unavailable,
)
from services.chassis.rpc.methods import GATEWAY, OPERATOR, Method
from services.chassis.telemetry import logs, redaction

MOST_SECONDS = 30.0
"""The longest that a call without streams may take, and its deadline if it came without one."""

_log = logs.logger(__name__)
_audit = logs.audit(__name__)


@dataclass(slots=True)
class Call:
    """One call of a method."""

    method: Method
    metadata: Mapping[str, Any]
    """gRPC metadata, or HTTP headers with lowercase names."""
    caller: str
    """The authenticated identity; "": it has none."""
    peer: Callable[[], str]
    """Returns the peer's network address."""
    seconds: float | None
    """How long the caller waits; None: it has no deadline."""
    received: Any
    """What the transport received: bytes, or an asynchronous iterator of them."""
    read: Callable[[Any], Any]
    """Returns the valid request in `received`, or an asynchronous iterator of requests."""
    servicer: Any = None
    """gRPC's own context of the call; None: the call came over REST."""
    request: Any = None
    """What `read` returned, once `read_request` has called it."""


Handler = Callable[[Call], Awaitable[Any]]


async def enter_context(proceed: Handler, call: Call) -> Any:
    """Makes the trace, the signed-in user and the deadline available to the code that runs.

    The gateway's timeout header (x-envoy-expected-rq-timeout-ms) can shorten the deadline, because
    the gateway stops waiting then, whatever timeout its own client asked for.
    """
    seconds = call.seconds
    expected_ms = call.metadata.get("x-envoy-expected-rq-timeout-ms", "")
    if expected_ms.isdigit():
        seconds = min(int(expected_ms) / 1000, math.inf if seconds is None else seconds)
    # Only the gateway may name the signed-in user.
    user_id = call.metadata.get(context.USER_ID, "") if call.caller == GATEWAY else ""
    context.enter(
        context.CallContext(
            trace_id=context.trace_id_of(call.metadata.get(context.TRACEPARENT)),
            user_id=int(user_id) if user_id.isascii() and user_id.isdigit() else 0,
            deadline=None if seconds is None else asyncio.get_running_loop().time() + seconds,
        )
    )
    return await proceed(call)


async def convert_errors(proceed: Handler, call: Call) -> Any:
    """Raises only errors that the caller may see, and logs the others."""
    try:
        return await proceed(call)
    except MeshError as error:
        if isinstance(error, Unavailable):
            _log.warning("call.unavailable", method=call.method.path, exc_info=error)
        raise
    except TimeoutError:
        raise DeadlineExceeded from None
    except grpc.aio.BaseError:
        # The connection ended, or the handler aborted the call: gRPC handles both.
        raise
    except Exception as error:
        _log.error("call.failed", method=call.method.path, exc_info=error)
        raise Internal from None


async def authorize(proceed: Handler, call: Call) -> Any:
    """Rejects callers that the contract does not name, and users who must be signed in.

    Both before the request is parsed.
    """
    if call.caller not in call.method.callers:
        _audit.warning(
            "caller.refused", caller=call.caller, method=call.method.path, peer=call.peer()
        )
        raise CallerNotAllowed(call.caller, call.method.path)
    if call.caller == GATEWAY and not call.method.without_token:
        context.signed_in()
    return await proceed(call)


async def limit_time(proceed: Handler, call: Call) -> Any:
    """Ends a call at its deadline. A stream without a deadline may take any time."""
    deadline = context.current().deadline
    if not call.method.streams:
        latest = asyncio.get_running_loop().time() + MOST_SECONDS
        deadline = latest if deadline is None else min(deadline, latest)
    async with asyncio.timeout_at(deadline):
        return await proceed(call)


async def read_request(proceed: Handler, call: Call) -> Any:
    """Parses and validates the request. Audits each call by an operator, even if it is invalid."""
    try:
        call.request = call.read(call.received)
    finally:
        if call.caller == OPERATOR:
            _audit.info(
                "operator.called",
                method=call.method.path,
                peer=call.peer(),
                request=redaction.printable(call.request)
                if isinstance(call.request, Message)
                else None,
            )
    return await proceed(call)


INTERCEPTORS = (enter_context, convert_errors, authorize, limit_time, read_request)


def intercepted(handler: Handler) -> Handler:
    """Returns a handler that passes each call through the interceptors.

    It raises `MeshError`, whose encoding depends on the transport.
    """
    for interceptor in reversed(INTERCEPTORS):
        handler = functools.partial(interceptor, handler)
    return handler
