"""Structured logs: one JSON object a line on standard output, with the trace id."""

import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from services.common import context


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
        structlog.processors.dict_tracebacks,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level.lower()),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # The Kafka client tells each reconnect several times over.
    logging.getLogger("kafka").setLevel(logging.ERROR)


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger; `name` is the module's `__name__`."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return bound
