"""Log events are names such as `media.failed`, which can be searched for."""

import ast
import re
from collections.abc import Iterator

from tests.contracts.test_contracts import ROOT

_NAME = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*")
_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
_LOGGERS = {"_log", "_audit", "log", "early"}


def events() -> Iterator[tuple[str, str]]:
    """Yields each event that the services and the gateway log, and where."""
    for folder in ("services", "gateway"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id=logger), attr=method),
                        args=[ast.Constant(value=str(event)), *_],
                    ) if logger in _LOGGERS and method in _METHODS:
                        yield event, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_log_event_is_a_noun_and_a_verb():
    found = list(events())

    assert len(found) > 40
    assert [(event, place) for event, place in found if not _NAME.fullmatch(event)] == []
