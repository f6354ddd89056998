"""The Lua scripts compile, and declare every name that they use."""

import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
from redis import Redis

import services
from services.chassis.cache.scripts import Script, load

_FOLDER = Path(services.__path__[0])

_KEYWORDS = set(
    re.findall(
        r"\w+",
        "and break do else elseif end false for function if in local nil not or repeat return "
        "then true until while",
    )
)
_BUILT_IN = {"ARGV", "ipairs", "math", "redis", "string", "tonumber", "unpack"}

_ids = itertools.count(6_000_000)


def _scripts() -> dict[str, Script]:
    """Returns the scripts of all services, by the names of their constants."""
    found = {}
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, Script):
                    found[f"{module.name}.{name}"] = value
    return found


SCRIPTS = _scripts()

every_script = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


def code(lua: str) -> str:
    """Returns a program without comments and strings."""
    return re.sub(r"^#!.*|--.*|'[^']*'", "", lua)


def names(lua: str) -> set[str]:
    """Returns the names in a program that are not fields."""
    return set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", code(lua))) - _KEYWORDS


def undeclared(lua: str) -> set[str]:
    lists = re.findall(
        r"\blocal (?!function)([\w, ]+)|\bfunction \w+\(([\w, ]*)\)|\bfor ([\w, ]+?) ?(?:=|in\b)",
        code(lua),
    )
    declared = {name for each in itertools.chain(*lists) for name in re.split(r"[ ,]+", each)}
    return names(lua) - declared - set(re.findall(r"function (\w+)", lua)) - _BUILT_IN


@every_script
def test_every_script_compiles(stack, script):
    stack.up(["valkey"])
    with Redis.from_url(stack.valkey_url) as valkey:
        assert valkey.script_load(script.source) == script.sha


@every_script
def test_every_script_declares_the_names_it_uses_and_uses_its_arguments(script):
    assert undeclared(script.source) == set()
    declarations, _, body = script.source.rpartition("ARGV")
    assert declarations
    assert {name.removesuffix("[]") for name in script.parameters} <= names(body)


def test_every_lua_file_is_loaded():
    sources = [script.source for script in SCRIPTS.values()]
    for path in _FOLDER.rglob("*.lua"):
        text = path.read_text().rpartition("--!")[2].partition("\n")[2] or path.read_text()
        assert any(text in source for source in sources), path


def test_a_name_that_is_not_declared_is_found():
    declared = Script("--!arguments space, posts[], owners[]\nreturn {space, posts, #owners}")
    assert undeclared(declared.source) == set()
    assert undeclared("for _, a in ipairs(b) do local c = d.e end -- f") == {"b", "d"}
    assert undeclared("local function a(b) return 'c' .. b .. c end") == {"c"}


@pytest.mark.parametrize("many", ["", "[]"])
async def test_arguments_arrive_under_their_names(cache, many):
    script = Script(f"""
        --!arguments word, list[], empty[], number, other[], own{many}
        return {{word, list, empty, number, other, own}}
    """)
    owner = next(_ids)
    arguments = {"other": ["x"], "word": "a b", "list": [1, b"\0", "c"], "empty": [], "number": 7}

    found = await cache.run(script, owner, **arguments)

    own = str(owner).encode()
    assert found == [b"a b", [b"1", b"\0", b"c"], [], b"7", [b"x"], [own] if many else own]


async def test_words_and_owners_arrive_without_lists(cache):
    owner = next(_ids)
    one = Script("--!arguments a, b, owner\nreturn {a, b, owner}")
    many = Script("--!arguments a, b, owners[]\nreturn {a, b, owners}")
    only = Script("--!arguments owners[]\nreturn owners")

    assert await cache.run(one, owner, a=1, b=2) == [b"1", b"2", str(owner).encode()]
    assert await cache.run_on_owners(many, [owner], a=1, b=2) == [
        [b"1", b"2", [str(owner).encode()]]
    ]
    assert await cache.run(only, owner) == [str(owner).encode()]


async def test_other_arguments_than_the_declared_ones_are_refused(cache):
    script = Script("--!arguments a, b[], owner\nreturn 1")

    for arguments in ({}, {"a": 1}, {"a": 1, "b": [], "c": 1}, {"a": 1, "b": [], "owner": 1}):
        with pytest.raises(TypeError, match="expected arguments"):
            await cache.run(script, 1, **arguments)


async def test_files_are_included_and_constants_are_locals(cache, tmp_path):
    (tmp_path / "shared.lua").write_text("local function twice(text) return text .. text end\n")
    (tmp_path / "script.lua").write_text(
        "--!include shared.lua\n--!arguments owner\nreturn {twice(NAME), NUMBER}\n"
    )

    script = load(tmp_path / "script.lua", {"NAME": "ab", "NUMBER": 3})

    assert await cache.run(script, 1) == [b"abab", 3]
