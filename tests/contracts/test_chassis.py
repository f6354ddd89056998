"""The chassis does not depend on the domain: neither its words nor its messages."""

import ast
import re

from deploy.processes import MESH
from tests.contracts.test_contracts import ROOT

CHASSIS = ROOT / "services/chassis"
SOURCES = [path for path in CHASSIS.rglob("*") if path.suffix in (".py", ".lua", ".sql")]

# They belong to the mesh, not to the domain.
_OF_THE_MESH = {"common", "gateway", "reflection"}
# Words of the domain that are not names of processes or packages.
_OTHERS = {"author", "caption", "celebrity", "follow", "follower", "photo", "timeline"}
# The usual name of the method that passes bytes to a parser.
_OF_LIBRARIES = re.compile(r"\bfeed_data\b|\b_reader\.feed\b")

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def domain_words() -> set[str]:
    """Returns the words of the domain, in lowercase and singular."""
    # The process `media-worker` works on media.
    processes = {process.name.partition("-")[0] for process in MESH}
    packages = {path.name for path in (ROOT / "protos/photomesh").iterdir()}
    return (processes | packages | _OTHERS) - _OF_THE_MESH


def words_of(text: str) -> set[str]:
    """Returns the words of code, strings and comments, in lowercase. `AddPost` is two words."""
    return {word.lower() for word in _WORD.findall(_OF_LIBRARIES.sub("", text))}


def test_no_word_of_the_domain_is_in_the_chassis():
    words = domain_words()
    words |= {f"{word}s" for word in words} | {"celebrities"}

    assert {"account", "accounts", "media", "post", "feed", "fanout", "graph"} <= words
    found = {
        str(path.relative_to(ROOT)): sorted(domain)
        for path in SOURCES
        if (domain := words & words_of(path.name + "\n" + path.read_text()))
    }
    assert found == {}


def test_a_word_of_the_domain_is_found_in_any_spelling():
    for text in ("PostCreated", "a_post_id", "POST_LIMIT", "# the post's", "HTTPPost", "x.post()"):
        assert "post" in words_of(text), text
    for text in ("postgres", "feed_data", "self._reader.feed(bytes)"):
        assert not words_of(text) & {"post", "feed"}, text


def test_the_chassis_imports_no_messages_of_the_domain():
    imported = {
        name
        for path in SOURCES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imports(node)
        if name.startswith("photomesh.")
    }

    assert {name.split(".")[1] for name in imported} == {"common"}


def _imports(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [f"{module}.{alias.name}" for alias in names]
    return []
