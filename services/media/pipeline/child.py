"""The renderer process: `python -m ...pipeline.child MEMORY LARGE CPU THREADS FILES`.

It has no secrets and no network connections, only pipes to the worker (see `renderers`):

    in:  for each file, the length of a request (4 bytes, big-endian) and the request (JSON); the
         file descriptor arrives through a socket
    out: for each response, its length (4 bytes), the response (JSON) and, if the response announces
         a variant, the variant's content. Each file gets one response with the picture's width and
         height, one for each finished step, and a final one.

The process ends when its input ends, so it never outlives the worker.
"""

import json
import os
import queue
import resource
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

from services.media.pipeline.decode import open_source
from services.media.pipeline.outputs import Failure, Made, Unprocessable
from services.media.pipeline.render import render

LENGTH = struct.Struct(">I")

_Requests = queue.SimpleQueue[tuple[dict[str, Any], BinaryIO]]


def main(
    memory_bytes: int, large_memory_bytes: int, cpu_seconds: int, threads: int, files: int
) -> None:
    """Renders one file after the other.

    Args:
        memory_bytes: the process's total memory limit for an ordinary file.
        large_memory_bytes: the limit for a large file, which the request marks as such.
        cpu_seconds: the CPU time limit for one file; SIGXCPU ends the process when it is exceeded.
        threads: how many steps run at a time; for a large file, one.
        files: the descriptor of the socket through which files arrive.
    """
    # Redirects standard output to standard error, so that output of libraries cannot corrupt the
    # responses.
    responses = _Responses(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    # A crash is an expected result. Its core dump would be as large as the memory limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    requests: _Requests = queue.SimpleQueue()
    # Reads in a separate thread, so that the process ends with its input even during a file.
    reading = threading.Thread(
        target=_read_requests, args=(sys.stdin.buffer, files, requests), daemon=True
    )
    reading.start()
    responses.write({"ready": True})
    while True:
        request, file = requests.get()
        memory = large_memory_bytes if request["large"] else memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (memory, large_memory_bytes))
        spent = time.process_time()
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(spent) + 1 + cpu_seconds, resource.RLIM_INFINITY)
        )
        with file:
            _handle(request, file, responses, 1 if request["large"] else threads)


def _handle(request: dict[str, Any], file: BinaryIO, responses: "_Responses", threads: int) -> None:
    try:
        source = open_source(file)
        if source.large and not request["large"]:
            responses.write({"large": True})
            return
        responses.write({"picture": source.size})
        rendition = render(source, request["present"], responses.made, threads=threads)
    except Unprocessable as error:
        responses.write({"failure": error.failure})
    except MemoryError:
        # The file needs more memory than estimated.
        responses.write({"failure": Failure.TOO_EXPENSIVE} if request["large"] else {"large": True})
    except Exception:
        responses.write({"bug": traceback.format_exc()})
    else:
        responses.write({"facts": rendition.facts})


def _read_requests(pipe: BinaryIO, files: int, requests: _Requests) -> None:
    received = socket.socket(fileno=files)
    while length := pipe.read(LENGTH.size):
        request = json.loads(pipe.read(*LENGTH.unpack(length)))
        _, [file], *_ = socket.recv_fds(received, 1, 1)
        requests.put((request, os.fdopen(file, "rb")))
    os._exit(0)


class _Responses:
    """Writes responses to the worker. Thread-safe."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def made(self, made: Made) -> None:
        self.write({"step": made.step, "size_bytes": len(made.content)}, made.content)

    def write(self, response: dict[str, Any], content: bytes = b"") -> None:
        text = json.dumps(response).encode()
        with self._lock:
            self._pipe.write(LENGTH.pack(len(text)))
            self._pipe.write(text)
            self._pipe.write(content)
            self._pipe.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
