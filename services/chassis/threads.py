"""Runs blocking code in dedicated threads."""

import asyncio
import threading
from collections.abc import Callable


async def run_in_thread(name: str, work: Callable[[], None], stop: threading.Event) -> None:
    """Runs `work` in a new thread; when cancelled, sets `stop` and waits until `work` returns.

    `work` runs for the lifetime of the process, and would occupy one of the few threads of
    asyncio's default executor.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def body() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(end, error)

    threading.Thread(target=body, name=name, daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.set()
        await ended
        raise
