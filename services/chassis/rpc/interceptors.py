"""The interceptors, which wrap the handler of every method, over gRPC and over REST.

An interceptor is a coroutine function that takes the rest of the chain and the call. It awaits the
rest and returns its result, or raises an error. To add one, write the function and list it in
`INTERCEPTORS`, outermost first. One that is listed before `convert_errors` sees what the caller
gets: the result, a `MeshError`, or a cancellation.

Each interceptor runs once per call, also if the requests or responses are a stream.
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

MAX_SECONDS = 30.0
"""The maximum duration of a call without streams, and its deadline if the caller sets none."""

_log = logs.logger(__name__)
_audit = logs.audit(__name__)


@dataclass(slots=True)
class Call:
    """One call of a method."""

    method: Method
    metadata: Mapping[str, Any]
    """gRPC metadata, or HTTP headers with lowercase names."""
    caller: str
    """The identity in the caller's certificate; "": there is none."""
    peer: Callable[[], str]
    """Returns the peer's network address."""
    seconds: float | None
    """How long the caller waits; None: there is no deadline."""
    received: Any
    """What the transport received: bytes, or an asynchronous iterator of them."""
    read: Callable[[Any], Any]
    """Parses and validates `received`. Returns a request, or an asynchronous iterator of them."""
    servicer: Any = None
    """gRPC's own context of the call; None: the call came over REST."""
    request: Any = None
    """What `read` returned, once `read_request` has called it."""


Handler = Callable[[Call], Awaitable[Any]]


async def enter_context(proceed: Handler, call: Call) -> Any:
    """Stores the trace, the signed-in user and the deadline in the call context.

    The gateway's timeout header (x-envoy-expected-rq-timeout-ms) can shorten the deadline, because
    the gateway then stops waiting, whatever timeout its own client set.
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
    """Passes errors that the caller may see, and converts others to INTERNAL and logs them."""
    try:
        return await proceed(call)
    except MeshError as error:
        if isinstance(error, Unavailable):
            _log.warning("call.unavailable", method=call.method.path, exc_info=error)
        raise
    except TimeoutError:
        raise DeadlineExceeded from None
    except grpc.aio.BaseError:
        # The connection closed, or the handler aborted the call. gRPC handles both.
        raise
    except Exception as error:
        _log.error("call.failed", method=call.method.path, exc_info=error)
        raise Internal from None


async def authorize(proceed: Handler, call: Call) -> Any:
    """Rejects callers that the contract does not list, and users who are not signed in.

    Runs before the request is parsed.
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
    """Ends a call at its deadline. A stream without a deadline can run for any time."""
    deadline = context.current().deadline
    if not call.method.streams:
        latest = asyncio.get_running_loop().time() + MAX_SECONDS
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
    """Returns the handler wrapped in all interceptors.

    It raises `MeshError`, which the transport encodes.
    """
    for interceptor in reversed(INTERCEPTORS):
        handler = functools.partial(interceptor, handler)
    return handler
