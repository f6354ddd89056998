"""Converts values for the logs: without secrets, and to at most a few kilobytes.

Contracts mark secret fields with `[debug_redact = true]`. In text, such as a driver's error
messages, a regular expression finds passwords and tokens. Large values are truncated before they
are converted to text, so they cost no more than small ones.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED = "[redacted]"

_MAX_CHARACTERS = 4_096
"""The maximum length of one string."""

_MAX_ITEMS = 50
"""The maximum number of items in one list, map, or message."""

_MAX_DEPTH = 10

_BUDGET = 16 * 1024
"""The approximate number of characters that a whole value may take."""

_PUNCTUATION = 4
"""How many characters are counted for the punctuation around each value."""

_CREDENTIALS = re.compile(
    # A password in a URL, a token or signature in a query string, a JWT.
    r"""(://[^/\s:@]*:)[^/\s@]+(?=@)|((?:token|signature)=)[^&\s"']+|eyJ[\w-]+\.[\w-]+\.[\w-]+""",
    re.IGNORECASE,
)


def printable(message: Message) -> dict[str, Any]:
    """Returns a message as plain data, ready for JSON.

    Fields marked `debug_redact` become "[redacted]", bytes their length, and enums their name.
    Long strings, lists and maps are truncated, and their full length is added. Fields that are not
    set are omitted.
    """
    return _Printer().message(message, 0)


def plain(value: Any) -> Any:
    """Returns any value as plain data, ready for JSON. Converts messages as `printable` does.

    Values other than numbers, strings, bytes, and collections become their `str()`.
    """
    return _Printer().value(value, 0)


class _Printer:
    """Converts one value within a budget of characters."""

    def __init__(self) -> None:
        self._budget = _BUDGET

    def message(self, message: Message, depth: int) -> dict[str, Any]:
        secret = _secret_fields(message.DESCRIPTOR)
        fields = message.ListFields()
        shown = {
            self._text(field.name): REDACTED
            if field.number in secret
            else self._field(field, value, depth + 1)
            for field, value in self._some(fields)
        }
        return self._with_length(shown, len(fields))

    def value(self, value: Any, depth: int) -> Any:
        self._budget -= _PUNCTUATION
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, int):
            # orjson writes at most 64 bits, and converting large numbers to text is slow.
            large = value.bit_length() > 63
            return f"<a number of {value.bit_length()} bits>" if large else int(value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{memoryview(value).nbytes} bytes>"
        if isinstance(value, BaseException):
            return self._text(_text_of_error(value))
        if not isinstance(value, Message | Mapping | Sequence | Set):
            return self._text(_text_of(value))
        if depth >= _MAX_DEPTH or self._budget <= 0:
            return "..."
        if isinstance(value, Message):
            return self.message(value, depth)
        if isinstance(value, Mapping):
            return self._map(value, depth, self.value)
        return self._list(value, depth, self.value)

    def _field(self, field: FieldDescriptor, value: Any, depth: int) -> Any:
        def one(value: Any, depth: int, field: FieldDescriptor = field) -> Any:
            if field.enum_type:
                known = field.enum_type.values_by_number.get(value)
                return known.name if known else value
            return self.value(value, depth)

        entry = field.message_type
        if entry and entry.GetOptions().map_entry:
            item = functools.partial(one, field=entry.fields_by_name["value"])
            return self._map(value, depth, item)
        return self._list(value, depth, one) if field.is_repeated else one(value, depth)

    def _list(self, values: Any, depth: int, one: Callable[[Any, int], Any]) -> list[Any]:
        shown = [one(value, depth + 1) for value in self._some(values)]
        if len(values) > len(shown):
            shown.append(f"... ({len(values)} in all)")
        return shown

    def _map(
        self, values: Mapping[Any, Any], depth: int, one: Callable[[Any, int], Any]
    ) -> dict[str, Any]:
        shown = {
            self._text(name if isinstance(name, str) else _text_of(name)): one(value, depth + 1)
            for name, value in self._some(values.items())
        }
        return self._with_length(shown, len(values))

    @staticmethod
    def _with_length(shown: dict[str, Any], length: int) -> dict[str, Any]:
        return shown if len(shown) >= length else {**shown, "...": f"{length} in all"}

    def _some(self, values: Iterable[Any]) -> Iterable[Any]:
        """Yields the first values until the budget is used up."""
        for value in islice(values, _MAX_ITEMS):
            if self._budget <= 0:
                return
            yield value

    def _text(self, text: str) -> str:
        kept = text[: max(0, min(_MAX_CHARACTERS, self._budget))]
        self._budget -= len(kept)
        shown = _CREDENTIALS.sub(lambda found: (found[1] or found[2] or "") + REDACTED, kept)
        # JSON input can contain half of a surrogate pair, which UTF-8 cannot encode.
        whole = shown.encode(errors="replace").decode()
        return whole if len(kept) == len(text) else f"{whole}... ({len(text)} characters)"


@functools.cache
def _secret_fields(message: Descriptor) -> frozenset[int]:
    """Returns the numbers of the fields that are marked as secrets."""
    return frozenset(field.number for field in message.fields if field.GetOptions().debug_redact)


def _text_of_error(error: BaseException) -> str:
    if type(error).__str__ is BaseException.__str__:
        return "; ".join(str(plain(part)) for part in error.args[:_MAX_ITEMS])
    return _text_of(error)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<a {type(value).__name__} that cannot be printed>"
