"""Structured logs: one JSON object a line on standard output, with the trace id.

A line holds no secret of a contract (redaction.py), no local variable of a frame, and at most
`MOST_LINE_BYTES`, whatever it is about.
"""

import logging
import sys
import threading
from itertools import islice
from traceback import walk_tb
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, WrappedLogger

from services.chassis import context
from services.chassis.telemetry import redaction

MOST_LINE_BYTES = 16 * 1024
"""Of one line, its end included. Of a longer one, the beginning of each field is kept."""

_FIRST = ("time", "level", "event", "service", "trace_id", "audit", "logger")
"""The fields that a line begins with, and keeps however many others it has."""

_MOST_FIELDS = 40
_MOST_NAME = 40
"""How many characters of a field's name are kept."""

_MOST_FRAMES = 20
"""Of one exception: the innermost."""

_MOST_CAUSES = 5
"""How many exceptions of a chain, and of a group, are told."""

_MOST_GROUPS = 3
"""How many groups within each other are told."""

_AUDIT = "audit"


def configure(service: str, level: str) -> None:
    """Makes every logger of the process write JSON lines that name `service`."""

    def add_service_and_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event["trace_id"] = context.current().trace_id
        return event

    shared: list[structlog.typing.Processor] = [
        add_service_and_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.ExceptionRenderer(_traceback),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _line],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger(_AUDIT).setLevel(logging.INFO)
    # The S3 client tells what it signs, and the signatures.
    logging.getLogger("botocore").setLevel(max(logging.INFO, logging.getLogger().level))
    _log_what_nobody_catches()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger; `name` is the module's `__name__`."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


def audit(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger for what engineers do.

    Its events are written whatever PHOTOMESH_LOG_LEVEL is, with the field `audit`: true.
    """
    bound: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"{_AUDIT}.{name}"),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        audit=True,
    )
    return bound


class _Handler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Tells that a record could not be written. By itself logging would print its arguments."""
        if record.name == __name__:
            # Not even this can be written: standard output is closed.
            return
        kind, _, _ = sys.exc_info()
        logger(__name__).error(
            "log.failed",
            source=f"{record.name}, {record.pathname}:{record.lineno}",
            error=kind.__name__ if kind else "",
        )


def _log_what_nobody_catches() -> None:
    """Has Python log uncaught errors of threads and destructors, which it prints uncut."""
    log = logger(__name__)

    def in_thread(uncaught: threading.ExceptHookArgs) -> None:
        if uncaught.exc_type is not SystemExit:
            log.error("thread.failed", exc_info=uncaught.exc_value)

    def in_destructor(uncaught: "sys.UnraisableHookArgs") -> None:
        log.error("destructor.failed", exc_info=uncaught.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = in_destructor
    sys.excepthook = lambda _, error, __: log.critical("process.failed", exc_info=error)


def _traceback(exc_info: ExcInfo, within: int = 0) -> list[dict[str, Any]]:
    """Returns an exception and those that led to it, the last one first.

    `within`: in how many groups it is.

    Unlike structlog's, it never looks at the local variables of a frame: passwords and tokens lie
    there, and whole files.
    """
    told: list[dict[str, Any]] = []
    error: BaseException | None = exc_info[1]
    while error is not None and len(told) < _MOST_CAUSES:
        # Of a deep recursion only one end is of use, and it costs little to walk.
        frames = [
            {"filename": frame.f_code.co_filename, "lineno": line, "name": frame.f_code.co_name}
            for frame, line in walk_tb(error.__traceback__)
        ][-_MOST_FRAMES:]
        one = {"exc_type": type(error).__name__, "exc_value": error, "frames": frames}
        if isinstance(error, BaseExceptionGroup) and within < _MOST_GROUPS:
            one["exceptions"] = [
                _traceback((type(each), each, each.__traceback__), within + 1)
                for each in error.exceptions[:_MOST_CAUSES]
            ]
        told.append(one)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told


def _line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Returns an event as one line of JSON, without its end."""
    names = [name for name in _FIRST if name in event]
    names += islice((name for name in event if name not in _FIRST), _MOST_FIELDS - len(names))
    fields = {str(name)[:_MOST_NAME]: redaction.plain(event[name]) for name in names}
    if len(names) < len(event):
        fields["fields"] = len(event)
    line = _to_json(fields)
    return (line if len(line) < MOST_LINE_BYTES else _cut(fields, len(line))).decode()


def _cut(fields: dict[str, Any], length: int) -> bytes:
    """Returns a line that shares its bytes fairly among the fields: short ones stay whole."""
    fields["line_bytes"] = length
    texts = {name: _to_json(value) for name, value in fields.items()}
    left = MOST_LINE_BYTES - 3 - sum(len(_to_json(name)) + 2 for name in texts)
    by_size = sorted(texts, key=lambda name: len(texts[name]))
    for waiting, name in zip(range(len(by_size), 0, -1), by_size, strict=True):
        if len(texts[name]) > left // waiting:
            texts[name] = _beginning(fields[name], left // waiting)
        left -= len(texts[name])
    return _to_json({name: orjson.Fragment(text) for name, text in texts.items()})


def _beginning(value: Any, most: int) -> bytes:
    """Returns the beginning of a value as a JSON string of at most `most` bytes."""
    text = value if isinstance(value, str) else _to_json(value).decode()
    kept = most
    # Which characters JSON makes longer is not known before.
    while len(cut := _to_json(f"{text[:kept]}...")) > most:
        kept = kept * 3 // 4
    return cut


def _to_json(value: Any) -> bytes:
    return orjson.dumps(value)
