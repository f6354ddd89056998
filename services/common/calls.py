"""What every call needs, whether it came by gRPC or REST.

Who makes it, and until when? Is it valid? What is its caller told when it goes wrong?
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import protovalidate
from google.protobuf.message import Message

from services.common import context, logs
from services.common.errors import (
    DeadlineExceeded,
    FieldInvalid,
    Internal,
    MeshError,
    Unavailable,
)

MOST_SECONDS = 30.0
"""The deadline of a call that came without one."""

_log = logs.logger(__name__)
_validator = protovalidate.Validator()


def enter(metadata: Mapping[str, Any], seconds: float | None = None) -> context.CallContext:
    """Makes the call that metadata (or headers, in small letters) describe the one at hand.

    `seconds` is how long its caller waits. Calls that Envoy makes out of REST, or passes on, carry
    only Envoy's own header.
    """
    expected_ms = metadata.get("x-envoy-expected-rq-timeout-ms", "")
    if seconds is None and expected_ms.isdigit():
        seconds = int(expected_ms) / 1000
    user_id = metadata.get(context.USER_ID, "")
    call = context.CallContext(
        trace_id=context.trace_id_of(metadata.get(context.TRACEPARENT)),
        user_id=int(user_id) if user_id.isascii() and user_id.isdigit() else 0,
        deadline=None if seconds is None else asyncio.get_running_loop().time() + seconds,
    )
    context.enter(call)
    return call


def validate(request: Message) -> None:
    """Checks a request against its contract.

    Raises:
        FieldInvalid: it breaks rules; it says which.
    """
    violations = _validator.collect_violations(request)
    if violations:
        raise FieldInvalid(
            {_path(violation.proto.field): violation.proto.message for violation in violations}
        )


def refusal(error: Exception, method: str) -> MeshError:
    """Returns what the caller is told of an error, and logs what it need not be told."""
    if isinstance(error, TimeoutError):
        error = DeadlineExceeded()
    if isinstance(error, Unavailable):
        _log.warning("unavailable", method=method, exc_info=error)
    if not isinstance(error, MeshError):
        _log.error("failed", method=method, exc_info=error)
        return Internal()
    return error


def _path(field: Any) -> str:
    """Returns a field path as text, such as `media_ids[1]`."""
    path = ""
    for element in field.elements:
        subscript = element.subscript
        path += ("." if path else "") + element.field_name
        if subscript is not None:
            path += f"[{subscript.value}]"
    return path
