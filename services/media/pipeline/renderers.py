"""A pool of child processes that make renditions, each with memory and time limits.

Only these processes import OpenCV. A process that has imported it cannot fork safely, and a decoder
that a malicious file crashes or takes over must not have access to anything valuable.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs
from services.media.pipeline.header import MAX_PIXELS
from services.media.pipeline.outputs import (
    VARIANT_STEPS,
    Fact,
    Failure,
    Made,
    Rendition,
    Unprocessable,
    object_name,
    variant,
)

_log = logs.logger(__name__)

_ROOT = Path(__file__).parents[3]
_CHILD = "services.media.pipeline.child"

_LENGTH_BYTES = 4

# Keeps a compromised child from exhausting the worker's memory with its responses.
_MAX_RESPONSE_BYTES = 64 * 1024
_MAX_VARIANT_BYTES = 32 * 1024 * 1024

_START_SECONDS = 30.0

_THREADS = os.cpu_count() or 1
"""How many steps of one file run at a time: as many as there are cores."""


@dataclass(frozen=True)
class Limits:
    """The limits of one child, or of one file in it."""

    memory_bytes: int
    large_memory_bytes: int
    """The memory limit for a large picture. All children together render one at a time."""
    cpu_seconds: int
    wall_seconds: float
    """A file that exceeds this limit but not `cpu_seconds` is retried, because the machine is slow
    and not the file."""


class RendererFailed(Exception):
    """A child failed because of a bug, not because of the file."""


class Renderers:
    """Renders one file per child at a time; more files wait in a queue."""

    def __init__(self, children: int, limits: Limits) -> None:
        self._limits = limits
        self._large = asyncio.Lock()
        # None: a child that is started when it is needed.
        self._idle: asyncio.LifoQueue[_Child | None] = asyncio.LifoQueue()
        for _ in range(children):
            self._idle.put_nowait(None)
        self._children = children

    async def __aenter__(self) -> "Renderers":
        # Starts all children in parallel, because importing OpenCV takes a while.
        for _ in range(self._children):
            self._idle.get_nowait()
        started = await asyncio.gather(*(_Child.start(self._limits) for _ in range(self._children)))
        for child in started:
            self._idle.put_nowait(child)
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self._idle.empty():
            child = self._idle.get_nowait()
            if child is not None:
                await child.kill()

    async def render(
        self,
        file: BinaryIO,
        present: Mapping[str, int] | None = None,
        on_step: Callable[[Made], None] = lambda _: None,
    ) -> Rendition:
        """Makes every variant of a file, and every fact.

        Args:
            file: must be on a disk.
            present: the variants to skip: object names and sizes in bytes.
            on_step: called with each step as soon as it is finished. If a picture needs more memory
                than estimated, rendering restarts, and some steps are reported twice.

        Raises:
            Unprocessable: the file cannot be processed.
            Unavailable: the child was killed from outside or cannot start, or the machine is
                too slow at present.
            RendererFailed: there is a bug.
        """
        request = {"present": dict(present or {}), "large": False}
        rendition = await self._render(file, request, on_step)
        if rendition is None:
            # Waits without occupying a child, so that smaller pictures are not delayed.
            async with self._large:
                rendition = await self._render(file, request | {"large": True}, on_step)
        if rendition is None:
            raise RendererFailed("a picture was reported as large again in a large request")
        return rendition

    async def _render(
        self, file: BinaryIO, request: Mapping[str, Any], on_step: Callable[[Made], None]
    ) -> Rendition | None:
        """Renders a file; None: the file is large and the request does not mark it as such."""
        child = await self._idle.get()
        try:
            if child is None or child.ended:
                child = await _Child.start(self._limits)
            async with asyncio.timeout(self._limits.wall_seconds):
                return await child.render(file, request, on_step)
        except TimeoutError:
            raise Unavailable("The renderer") from None
        finally:
            # Replaces the child after an interrupted or canceled request, which leaves responses
            # unread, and after a large picture, whose memory the allocator would not return.
            if child is not None and (child.busy or request["large"]):
                await child.kill()
                child = None
            self._idle.put_nowait(child)


class _Child:
    """One child process."""

    def __init__(self, process: Process, files: socket.socket) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._files = files
        self.busy = False

    @property
    def ended(self) -> bool:
        """Whether the process has ended, for example because an operator killed it while idle."""
        return self._process.returncode is not None or self._stdin.is_closing()

    @classmethod
    async def start(cls, limits: Limits) -> "_Child":
        """Starts a child and returns when it is ready.

        Raises:
            Unavailable: the child cannot start.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                child = cls(*await _spawn(limits))
                await child._until_ready()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            # No file was involved, so none can be the cause.
            raise Unavailable("The renderer") from error
        return child

    async def _until_ready(self) -> None:
        try:
            await self._response()
        except BaseException:
            await self.kill()
            raise

    async def render(
        self, file: BinaryIO, request: Mapping[str, Any], on_step: Callable[[Made], None]
    ) -> Rendition | None:
        self.busy = True
        try:
            text = json.dumps(request).encode()
            self._stdin.write(len(text).to_bytes(_LENGTH_BYTES, "big"))
            self._stdin.write(text)
            # The child maps the file through its descriptor, so that a file of any size is never
            # loaded into memory as a whole.
            socket.send_fds(self._files, [b"f"], [file.fileno()])
            await self._stdin.drain()
            response = await self._response()
            picture, contents = response.get("picture"), {}
            if picture is not None:
                while "step" in (response := await self._response()):
                    made = await self._made(response, picture)
                    if made.variant is not None:
                        contents[made.variant.object_name] = made.content
                    on_step(made)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise _why(await self._process.wait()) from None
        self.busy = False
        if "large" in response:
            return None
        if picture is not None and "facts" in response:
            return _rendition(picture, response["facts"], request["present"], contents)
        if "failure" in response:
            raise Unprocessable(Failure(response["failure"]))
        raise RendererFailed(response.get("bug"))

    async def _response(self) -> dict[str, Any]:
        length = int.from_bytes(await self._stdout.readexactly(_LENGTH_BYTES), "big")
        if length > _MAX_RESPONSE_BYTES:
            raise RendererFailed("a response is too long")
        response: dict[str, Any] = json.loads(await self._stdout.readexactly(length))
        return response

    async def _made(self, response: dict[str, Any], picture: tuple[int, int]) -> Made:
        step, size_bytes = response["step"], response["size_bytes"]
        if step not in VARIANT_STEPS:
            return Made(step)
        if size_bytes > _MAX_VARIANT_BYTES:
            raise RendererFailed("a variant is too long")
        # Computes the name and the type here, so that a compromised child cannot choose them.
        return Made(
            step, variant(step, picture, size_bytes), await self._stdout.readexactly(size_bytes)
        )

    async def kill(self) -> None:
        """Kills the child."""
        self._files.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


def _rendition(
    picture: tuple[int, int],
    facts: Mapping[str, str],
    present: Mapping[str, int],
    contents: dict[str, bytes],
) -> Rendition:
    sizes = dict(present) | {name: len(content) for name, content in contents.items()}
    return Rendition(
        *picture,
        {Fact(name): value for name, value in facts.items()},
        tuple(
            variant(step, picture, sizes[object_name(*makes)])
            for step, makes in VARIANT_STEPS.items()
        ),
        contents,
    )


async def _spawn(limits: Limits) -> tuple[Process, socket.socket]:
    """Returns a new child process, and the socket through which it receives files."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            return await _spawn_with(limits, theirs), ours
        except BaseException:
            ours.close()
            raise


async def _spawn_with(limits: Limits, files: socket.socket) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _CHILD),
        *(str(limits.memory_bytes), str(limits.large_memory_bytes)),
        *(str(limits.cpu_seconds), str(_THREADS), str(files.fileno())),
        pass_fds=[files.fileno()],
        stdin=PIPE,
        stdout=PIPE,
        # No other variables, so that the child does not see the worker's keys and addresses.
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(_ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            # Each malloc arena reserves memory that pictures need.
            "MALLOC_ARENA_MAX": "2",
            # OpenCV reads this when it is imported. The header is checked before decoding, but the
            # decoder may see other dimensions in the file than `read_header`.
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        },
    )


def _why(return_code: int) -> Exception:
    """Returns the error for a child that ended while it rendered a file."""
    _log.warning("renderer.ended", return_code=return_code)
    if return_code == -signal.SIGXCPU:
        return Unprocessable(Failure.TOO_EXPENSIVE)
    if return_code in (-signal.SIGKILL, -signal.SIGTERM):
        # The child's own limits never send these signals: the kernel's OOM killer did, or an
        # operator.
        return Unavailable("The renderer")
    # The decoder crashed on the file.
    return Unprocessable(Failure.CORRUPT)
