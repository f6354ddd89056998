"""Structured logs: one JSON object per line on standard output, with the trace id.

Whatever is logged, a line contains no field that a contract marks as secret (redaction.py), no
local variables of stack frames, and at most `MAX_LINE_BYTES`.
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

MAX_LINE_BYTES = 16 * 1024
"""The maximum length of a line, including the newline. In longer lines, fields are truncated."""

_FIRST = ("time", "level", "event", "service", "trace_id", "audit", "logger")
"""The fields at the start of each line. They are kept, however many other fields there are."""

_MAX_FIELDS = 40
_MAX_NAME_CHARACTERS = 40

_MAX_FRAMES = 20
"""The maximum number of frames logged per exception: the innermost ones."""

_MAX_EXCEPTIONS = 5
"""The maximum number of exceptions logged per chain and per group."""

_MAX_NESTED_GROUPS = 3
"""The maximum nesting depth of logged exception groups."""

_AUDIT = "audit"


def configure(service: str, level: str) -> None:
    """Makes every logger of the process write JSON lines with the field `service`."""

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
    # At DEBUG, the S3 client logs what it signs, and the signatures.
    logging.getLogger("botocore").setLevel(max(logging.INFO, logging.getLogger().level))
    _log_uncaught_errors()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger; `name` is the module's `__name__`."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound


def audit(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger for the audit log.

    Its events have the field `audit`: true, and are written whatever PHOTOMESH_LOG_LEVEL is.
    """
    bound: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"{_AUDIT}.{name}"),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        audit=True,
    )
    return bound


class _Handler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Logs that a record could not be written. The default handler prints its arguments."""
        if record.name == __name__:
            # This event cannot be written either: standard output is closed.
            return
        error_type, _, _ = sys.exc_info()
        logger(__name__).error(
            "log.failed",
            source=f"{record.name}, {record.pathname}:{record.lineno}",
            error=error_type.__name__ if error_type else "",
        )


def _log_uncaught_errors() -> None:
    """Logs uncaught errors, including those of threads and destructors.

    By default, Python prints them, with tracebacks of any length.
    """
    log = logger(__name__)

    def in_thread(uncaught: threading.ExceptHookArgs) -> None:
        if uncaught.exc_type is not SystemExit:
            log.error("thread.failed", exc_info=uncaught.exc_value)

    def in_destructor(uncaught: "sys.UnraisableHookArgs") -> None:
        log.error("destructor.failed", exc_info=uncaught.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = in_destructor
    sys.excepthook = lambda _, error, __: log.critical("process.failed", exc_info=error)


def _traceback(exc_info: ExcInfo, depth: int = 0) -> list[dict[str, Any]]:
    """Returns an exception and its causes, the outermost exception first.

    `depth`: the number of exception groups that contain it.

    Unlike structlog's renderer, it never reads the local variables of a frame, which can hold
    passwords, tokens, and whole files.
    """
    chain: list[dict[str, Any]] = []
    error: BaseException | None = exc_info[1]
    while error is not None and len(chain) < _MAX_EXCEPTIONS:
        # In a deep recursion, only the innermost frames are useful. Walking all of them is cheap.
        frames = [
            {"filename": frame.f_code.co_filename, "lineno": line, "name": frame.f_code.co_name}
            for frame, line in walk_tb(error.__traceback__)
        ][-_MAX_FRAMES:]
        one = {"exc_type": type(error).__name__, "exc_value": error, "frames": frames}
        if isinstance(error, BaseExceptionGroup) and depth < _MAX_NESTED_GROUPS:
            one["exceptions"] = [
                _traceback((type(each), each, each.__traceback__), depth + 1)
                for each in error.exceptions[:_MAX_EXCEPTIONS]
            ]
        chain.append(one)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def _line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Returns an event as one line of JSON, without the newline."""
    names = [name for name in _FIRST if name in event]
    names += islice((name for name in event if name not in _FIRST), _MAX_FIELDS - len(names))
    fields = {str(name)[:_MAX_NAME_CHARACTERS]: redaction.plain(event[name]) for name in names}
    if len(names) < len(event):
        fields["fields"] = len(event)
    line = _to_json(fields)
    return (line if len(line) < MAX_LINE_BYTES else _truncated(fields, len(line))).decode()


def _truncated(fields: dict[str, Any], length: int) -> bytes:
    """Returns a line in which long fields share the space equally, and short ones are whole."""
    fields["line_bytes"] = length
    texts = {name: _to_json(value) for name, value in fields.items()}
    left = MAX_LINE_BYTES - 3 - sum(len(_to_json(name)) + 2 for name in texts)
    by_size = sorted(texts, key=lambda name: len(texts[name]))
    for remaining, name in zip(range(len(by_size), 0, -1), by_size, strict=True):
        if len(texts[name]) > left // remaining:
            texts[name] = _beginning(fields[name], left // remaining)
        left -= len(texts[name])
    return _to_json({name: orjson.Fragment(text) for name, text in texts.items()})


def _beginning(value: Any, limit: int) -> bytes:
    """Returns the beginning of a value as a JSON string of at most `limit` bytes."""
    text = value if isinstance(value, str) else _to_json(value).decode()
    kept = limit
    # JSON escapes some characters, so the length of the result is known only afterwards.
    while len(beginning := _to_json(f"{text[:kept]}...")) > limit:
        kept = kept * 3 // 4
    return beginning


def _to_json(value: Any) -> bytes:
    return orjson.dumps(value)
