"""What may be printed of a value: no secret of a contract, and no more than a few kilobytes.

Contracts mark the fields that are secrets: `[debug_redact = true]`. In texts, such as those of a
driver's errors, what grants something is recognised by its form. Nothing is turned into text only
to be cut, so a large value costs no more than a small one.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

REDACTED = "[redacted]"

_MOST_CHARACTERS = 4_096
"""Of one text."""

_MOST_ITEMS = 50
"""Of one list, map or message."""

_MOST_DEPTH = 10

_ROOM = 16 * 1024
"""How many characters a whole value may take, give or take one text's end."""

_NODE = 4
"""How many characters the punctuation around a value is taken for."""

_GRANTING = re.compile(
    # The password of a URL, the token or signature of another, a JWT.
    r"""(://[^/\s:@]*:)[^/\s@]+(?=@)|((?:token|signature)=)[^&\s"']+|eyJ[\w-]+\.[\w-]+\.[\w-]+""",
    re.IGNORECASE,
)


def printable(message: Message) -> dict[str, Any]:
    """Returns a message as plain data, ready for JSON.

    Fields marked `debug_redact` are "[redacted]", bytes are told as their length, enums by name.
    Long texts are cut, and long lists and maps; what is cut says how long it was. Fields that are
    not set are left out.
    """
    return _Printer().message(message, 0)


def plain(value: Any) -> Any:
    """Returns any value as plain data, ready for JSON: messages as `printable` does.

    What is neither a number, a text nor a collection is told by its `str()`.
    """
    return _Printer().value(value, 0)


class _Printer:
    """Prints one value within one allowance of characters."""

    def __init__(self) -> None:
        self._room = _ROOM

    def message(self, message: Message, depth: int) -> dict[str, Any]:
        secret = _secret_fields(message.DESCRIPTOR)
        fields = message.ListFields()
        shown = {
            self._text(field.name): REDACTED
            if field.number in secret
            else self._field(field, value, depth + 1)
            for field, value in self._some(fields)
        }
        return self._told_rest(shown, len(fields))

    def value(self, value: Any, depth: int) -> Any:
        self._room -= _NODE
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, int):
            # JSON as orjson writes it has 64 bits, and long numbers take long to print.
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
        if depth >= _MOST_DEPTH or self._room <= 0:
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
        return self._told_rest(shown, len(values))

    @staticmethod
    def _told_rest(shown: dict[str, Any], length: int) -> dict[str, Any]:
        return shown if len(shown) >= length else {**shown, "...": f"{length} in all"}

    def _some(self, values: Iterable[Any]) -> Iterable[Any]:
        """Yields the first values, for as long as there is room."""
        for value in islice(values, _MOST_ITEMS):
            if self._room <= 0:
                return
            yield value

    def _text(self, text: str) -> str:
        kept = text[: max(0, min(_MOST_CHARACTERS, self._room))]
        self._room -= len(kept)
        shown = _GRANTING.sub(lambda found: (found[1] or found[2] or "") + REDACTED, kept)
        # Half of a surrogate pair, as JSON may bring it, is no UTF-8.
        whole = shown.encode(errors="replace").decode()
        return whole if len(kept) == len(text) else f"{whole}... ({len(text)} characters)"


@functools.cache
def _secret_fields(message: Descriptor) -> frozenset[int]:
    """Returns the numbers of the fields that are marked as secrets."""
    return frozenset(field.number for field in message.fields if field.GetOptions().debug_redact)


def _text_of_error(error: BaseException) -> str:
    if type(error).__str__ is BaseException.__str__:
        return "; ".join(str(plain(part)) for part in error.args[:_MOST_ITEMS])
    return _text_of(error)


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<a {type(value).__name__} that cannot be printed>"
