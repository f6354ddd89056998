"""What every gRPC and REST call needs: its context, validation, and the error for its caller."""

import asyncio
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from services.chassis import context
from services.chassis.errors import (
    DeadlineExceeded,
    FieldInvalid,
    Internal,
    MeshError,
    RequestMalformed,
    Unavailable,
)
from services.chassis.rpc.callers import GATEWAY
from services.chassis.telemetry import logs

MOST_SECONDS = 30.0
"""The longest that a unary call may take, and the deadline of one that came without any."""

MOST_REQUEST_BYTES = 64 * 1024
"""The largest accepted request, except for the messages of an upload."""

_MOST_VIOLATIONS = 20
"""The largest number of invalid fields that an error names."""

_EXPLAINED_BYTES = 1024
"""The largest invalid request for which all violations are collected. For a larger one, validation
stops at the first: a request of 64 KiB can have 65,000 violations, at 7 us each."""

_log = logs.logger(__name__)
_validator = protovalidate.Validator()


def enter(
    metadata: Mapping[str, Any], *, caller: str, seconds: float | None = None
) -> context.CallContext:
    """Enters and returns the context of a call.

    The gateway's timeout header (x-envoy-expected-rq-timeout-ms) can shorten the deadline, because
    the gateway stops waiting then, whatever timeout its own client asked for.

    Args:
        metadata: gRPC metadata, or HTTP headers with lowercase names.
        caller: the authenticated identity. Only the gateway may name the signed-in user.
        seconds: how long the caller waits; None: it has no deadline.
    """
    expected_ms = metadata.get("x-envoy-expected-rq-timeout-ms", "")
    if expected_ms.isdigit():
        seconds = min(int(expected_ms) / 1000, math.inf if seconds is None else seconds)
    user_id = metadata.get(context.USER_ID, "") if caller == GATEWAY else ""
    call = context.CallContext(
        trace_id=context.trace_id_of(metadata.get(context.TRACEPARENT)),
        user_id=int(user_id) if user_id.isascii() and user_id.isdigit() else 0,
        deadline=None if seconds is None else asyncio.get_running_loop().time() + seconds,
    )
    context.enter(call)
    return call


def read(raw: bytes, parse: Callable[[bytes], Message]) -> Message:
    """Parses and validates a request.

    Raises:
        RequestMalformed: the request is too large, or is not a message of the method's type.
        FieldInvalid: the request violates the rules of its contract.
    """
    if len(raw) > MOST_REQUEST_BYTES:
        raise RequestMalformed(
            f"The request has {len(raw)} bytes; at most {MOST_REQUEST_BYTES} are allowed."
        )
    request = decode(raw, parse)
    validate(request)
    return request


def decode(raw: bytes, parse: Callable[[bytes], Message]) -> Message:
    """Parses a message.

    Raises:
        RequestMalformed: the bytes are not a message of the method's type.
    """
    try:
        return parse(raw)
    except DecodeError:
        raise RequestMalformed("The request is not a message of the method's type.") from None


def validate(request: Message) -> None:
    """Validates a request against its contract, and rejects text that contains a NUL character.

    PostgreSQL cannot store NUL characters, and legitimate text has none.

    Raises:
        FieldInvalid: names at most the first 20 invalid fields; for a request of more than 1 KiB,
            only the first violation of the contract.
    """
    # fail_fast: the number of items is checked before the items themselves.
    violations = _validator.collect_violations(request, fail_fast=True)
    if violations and request.ByteSize() <= _EXPLAINED_BYTES:
        violations = _validator.collect_violations(request)
    if violations:
        raise FieldInvalid(
            {
                _path(violation.proto.field): violation.proto.message
                for violation in violations[:_MOST_VIOLATIONS]
            }
        )
    if with_nul := list(islice(_texts_with_nul(request), _MOST_VIOLATIONS)):
        raise FieldInvalid(dict.fromkeys(with_nul, "must not contain a NUL character"))


def refusal(error: Exception, method: str) -> MeshError:
    """Returns the error to send to the caller, and logs what the caller must not see."""
    if isinstance(error, TimeoutError):
        error = DeadlineExceeded()
    if isinstance(error, Unavailable):
        _log.warning("call.unavailable", method=method, exc_info=error)
    if not isinstance(error, MeshError):
        _log.error("call.failed", method=method, exc_info=error)
        return Internal()
    return error


def _texts_with_nul(message: Message, scope: str = "") -> Iterator[str]:
    """Yields the paths of all strings in a message that contain a NUL character."""
    for field in _fields_with_text(message.DESCRIPTOR):
        value, path = getattr(message, field.name), scope + field.name
        if _is_map(field):
            # The path omits the key: it is client text, which errors do not repeat.
            items = [(path, item) for pair in value.items() for item in pair]
        elif field.is_repeated:
            items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif field.message_type is None or message.HasField(field.name):
            items = [(path, value)]
        else:
            items = []
        for place, item in items:
            if isinstance(item, Message):
                yield from _texts_with_nul(item, f"{place}.")
            elif isinstance(item, str) and "\0" in item:
                yield place


@functools.cache
def _fields_with_text(message: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Returns the fields of a message that are strings or that contain strings."""
    return tuple(field for field in message.fields if _holds_text(field, frozenset()))


def _holds_text(field: FieldDescriptor, within: frozenset[str]) -> bool:
    if field.message_type is None:
        return bool(field.type == FieldDescriptor.TYPE_STRING)
    name = field.message_type.full_name
    return name not in within and any(
        _holds_text(inner, within | {name}) for inner in field.message_type.fields
    )


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _path(field: Any) -> str:
    """Returns a field path as text, such as `media_ids[1]`."""
    path = ""
    for element in field.elements:
        subscript = element.subscript
        path += ("." if path else "") + element.field_name
        if subscript is not None:
            # The key of a map is client text of any length.
            path += f"[{str(subscript.value)[:40]}]"
    return path
