"""Parses requests and validates them against their contracts."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from services.chassis.errors import FieldInvalid, RequestMalformed

MAX_REQUEST_BYTES = 64 * 1024
"""The maximum size of a request, except for the messages of an upload."""

_MAX_VIOLATIONS = 20
"""The maximum number of invalid fields that an error names."""

_EXPLAINED_BYTES = 1024
"""The maximum size of an invalid request for which all violations are collected. In a larger one,
validation stops at the first: a request of 64 KiB can have 65,000 violations, at 7 us each."""

_validator = protovalidate.Validator()


def read(raw: bytes, parse: Callable[[bytes], Message]) -> Message:
    """Parses and validates a request.

    Raises:
        RequestMalformed: the request is too large, or is not a message of the method's type.
        FieldInvalid: the request violates the rules of its contract.
    """
    if len(raw) > MAX_REQUEST_BYTES:
        raise RequestMalformed(
            f"The request has {len(raw)} bytes; at most {MAX_REQUEST_BYTES} are allowed."
        )
    request = _decode(raw, parse)
    validate(request)
    return request


async def read_stream(
    raws: AsyncIterator[bytes], parse: Callable[[bytes], Message]
) -> AsyncIterator[Message]:
    """Parses a stream of requests, and validates the first. The others contain only bytes.

    Raises:
        RequestMalformed: a request is not a message of the method's type.
        FieldInvalid: the first request violates the rules of its contract.
    """
    is_first = True
    async for raw in raws:
        request = _decode(raw, parse)
        if is_first:
            validate(request)
            is_first = False
        yield request


def validate(request: Message) -> None:
    """Validates a request against its contract, and rejects text that contains a NUL character.

    PostgreSQL cannot store NUL characters, and legitimate text has none.

    Raises:
        FieldInvalid: a field is invalid. The error names at most the first 20 invalid fields; for a
            request of more than 1 KiB, only the first violation of the contract.
    """
    # With fail_fast, the number of items is checked before the items themselves.
    violations = _validator.collect_violations(request, fail_fast=True)
    if violations and request.ByteSize() <= _EXPLAINED_BYTES:
        violations = _validator.collect_violations(request)
    if violations:
        raise FieldInvalid(
            {
                _path(violation.proto.field): violation.proto.message
                for violation in violations[:_MAX_VIOLATIONS]
            }
        )
    if with_nul := list(islice(_texts_with_nul(request), _MAX_VIOLATIONS)):
        raise FieldInvalid(dict.fromkeys(with_nul, "must not contain a NUL character"))


def _decode(raw: bytes, parse: Callable[[bytes], Message]) -> Message:
    try:
        return parse(raw)
    except DecodeError:
        raise RequestMalformed("The request is not a message of the method's type.") from None


def _texts_with_nul(message: Message, scope: str = "") -> Iterator[str]:
    """Yields the paths of all strings in a message that contain a NUL character."""
    for field in _fields_with_text(message.DESCRIPTOR):
        value, path = getattr(message, field.name), scope + field.name
        if _is_map(field):
            # Omits the key, because errors do not repeat text from clients.
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
    """Returns a field path as text, such as `bookmark_ids[1]`."""
    path = ""
    for element in field.elements:
        subscript = element.subscript
        path += ("." if path else "") + element.field_name
        if subscript is not None:
            # The key of a map is text of any length from a client.
            path += f"[{str(subscript.value)[:40]}]"
    return path
