"""Jobs that a process runs periodically."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from services.chassis import context
from services.chassis.errors import Unavailable
from services.chassis.rpc.server import Worker
from services.chassis.telemetry import logs

_log = logs.logger(__name__)


def periodic(name: str, job: Callable[[], Awaitable[object]], *, seconds: float) -> Worker:
    """Returns a worker that runs a job every `seconds` on average until it is cancelled.

    The pauses are random, so that the replicas of a service do not run the job at the same time.
    Each run has its own trace. If a run raises Unavailable, the worker logs that and tries again at
    the next run; any other error ends the process.
    """

    async def run(ready: Callable[[], None]) -> None:
        ready()
        pause = random.uniform(0, seconds)
        while True:
            await asyncio.sleep(pause)
            context.enter_new_trace()
            try:
                await job()
            except Unavailable:
                _log.warning("job.blocked", job=name, exc_info=True)
            pause = seconds * random.uniform(0.5, 1.5)

    return Worker(name, run)
