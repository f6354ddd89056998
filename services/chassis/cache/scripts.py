"""Lua scripts for Valkey, in `.lua` files with named arguments.

Lines that begin with `--!` are directives, which the loader replaces with Lua:

    --!include keys.lua
    --!arguments space, bookmarks[], owners[]

`include` inserts a file of the same folder. `arguments` declares a local variable for each
argument; `[]` marks a list, whose variable is a table. The last argument is the owner (with `[]`:
the owners) of the keys that the script uses. `Cache` passes it; callers pass the others by name.
Constants that Python and Lua share are also local variables, with upper-case names.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from services.chassis.cache.valkey import Word

# Scripts build their keys themselves, so one call can use the keys of many owners on one server.
# The server still rejects keys that it does not hold.
_SHEBANG = "#!lua flags=allow-cross-slot-keys"

_INCLUDE = re.compile(r"^ *--!include (\S+)$", re.MULTILINE)
_ARGUMENTS = re.compile(r"^ *--!arguments (.+)$", re.MULTILINE)

# ARGV holds the owners, then the items of all lists, then one word for each other argument; for a
# list, this word is its length. Removing all words after the owners leaves ARGV as the table of
# owners, without a copy.
_TAKE = """\
local function take(count)
    local taken, first = {}, #ARGV - count
    for index = 1, count do
        taken[index] = ARGV[first + index]
        ARGV[first + index] = nil
    end
    return taken
end
"""


class Script:
    """A Lua script.

    Args:
        text: the script, which may have an `arguments` directive.
        constants: the values of the constants by name.
    """

    def __init__(self, text: str, constants: Mapping[str, int | str] | None = None) -> None:
        declared = _ARGUMENTS.search(text)
        self.parameters: Sequence[str] = declared[1].split(", ") if declared else ()
        """The declared arguments. The names of lists end with `[]`."""
        self._is_list = {
            name.removesuffix("[]"): name.endswith("[]") for name in self.parameters[:-1]
        }
        self.source = "\n".join(
            [
                _SHEBANG,
                *(f"local {name} = {_literal(value)}" for name, value in (constants or {}).items()),
                _ARGUMENTS.sub(lambda _: _declarations(self.parameters), text),
            ]
        )
        """The program that the server runs."""
        self.sha = hashlib.sha1(self.source.encode()).hexdigest()  # noqa: S324
        """The SHA-1 of the source in hexadecimal, by which the server knows the script."""

    def pack(self, arguments: Mapping[str, Word | Sequence[Word]]) -> list[Word]:
        """Returns the words of ARGV that come after the owners.

        Raises:
            TypeError: the arguments differ from the declared ones.
        """
        if arguments.keys() != self._is_list.keys():
            raise TypeError(f"expected arguments {[*self._is_list]}, got {[*arguments]}")
        items: list[Word] = []
        words: list[Word] = []
        for name, is_list in self._is_list.items():
            if is_list:
                values = cast(Sequence[Word], arguments[name])
                items += values
                words.append(len(values))
            else:
                words.append(cast(Word, arguments[name]))
        return items + words


def load(path: Path, constants: Mapping[str, int | str] | None = None) -> Script:
    """Reads a script and the files that it includes."""
    text = _INCLUDE.sub(lambda include: (path.parent / include[1]).read_text(), path.read_text())
    return Script(text, constants)


def _declarations(parameters: Sequence[str]) -> str:
    *others, last = parameters
    if not any(name.endswith("[]") for name in parameters):
        return f"local {', '.join([last, *others])} = unpack(ARGV)"
    lines = []
    if others:
        words = ", ".join(name.replace("[]", "_length") for name in others)
        lines.append(f"{_TAKE}local {words} = unpack(take({len(others)}))")
    lists = [name.removesuffix("[]") for name in others if name.endswith("[]")]
    lines += [f"local {name} = take({name}_length)" for name in reversed(lists)]
    owners = "ARGV" if last.endswith("[]") else "ARGV[1]"
    lines.append(f"local {last.removesuffix('[]')} = {owners}")
    return "\n".join(lines)


def _literal(value: int | str) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
