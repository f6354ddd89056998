"""Log events are names such as `media.failed`, and deploy/operations.md lists all of them."""

import ast
import re
from collections.abc import Iterator

from tests.contracts.test_contracts import ROOT

_NAME = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*")
_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


def events() -> Iterator[tuple[str, str, str]]:
    """Yields each event that the services and the gateway log, its folder, and its place."""
    for folder in ("services/*", "gateway"):
        for top in ROOT.glob(folder):
            for path in top.rglob("*.py"):
                for node in ast.walk(ast.parse(path.read_text())):
                    match node:
                        case ast.Call(func=ast.Attribute(attr=method), args=[event, *_]) if (
                            method in _METHODS
                        ):
                            place = f"{path.relative_to(ROOT)}:{node.lineno}"
                            yield ast.unparse(event).strip("'"), str(top.relative_to(ROOT)), place


def listed() -> Iterator[tuple[str, str]]:
    """Yields each event in the tables of deploy/operations.md, and the folder of its table."""
    text = (ROOT / "deploy/operations.md").read_text()
    for table in text.split("\n### Events of ")[1:]:
        [folder, *_] = re.findall(r"`(.+)/`", table)
        for cell in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE):
            yield from ((event, folder) for event in re.findall(r"`(.+?)`", cell))


def test_every_log_event_is_a_noun_and_a_verb():
    found = list(events())

    assert len(found) > 40
    assert [(event, place) for event, _, place in found if not _NAME.fullmatch(event)] == []


def test_operations_lists_every_log_event_of_each_service_once():
    in_tables = list(listed())

    assert set(in_tables) == {(event, folder) for event, folder, _ in events()}
    assert len(in_tables) == len(set(in_tables))
