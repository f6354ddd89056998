"""The process that decodes: `python -m services.media.pipeline.child MEMORY LARGE CPU THREADS`.

It holds no secret and no connection, only pipes to the worker (see `renderers`):

    in:  the length of an order (4 bytes, big-endian), the order (JSON), the file
    out: the length of an answer (4 bytes), the answer (JSON), then the content of each new variant

It ends when its input does, so it never outlives the worker, however that ends.
"""

import json
import os
import queue
import resource
import struct
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from services.media.pipeline.decode import open_source
from services.media.pipeline.outputs import Failure, Unprocessable
from services.media.pipeline.render import render

LENGTH = struct.Struct(">I")


def main(memory_bytes: int, large_memory_bytes: int, cpu_seconds: int, threads: int) -> None:
    """Answers one file after the other.

    Args:
        memory_bytes: how much the process may allocate, all told, for an ordinary file.
        large_memory_bytes: how much for a large one, which only comes when the order says so.
        cpu_seconds: how long one file may keep cores busy; SIGXCPU ends the process then.
        threads: how many steps are done at a time.
    """
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # A crash is an outcome here; its core would be as large as the memory limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    orders: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    # In a thread of its own, so that the end of the input is noticed in the middle of a file.
    threading.Thread(target=_read_orders, args=(sys.stdin.buffer, orders), daemon=True).start()
    _write(answers, {"ready": True})
    while True:
        order, file = orders.get()
        memory = large_memory_bytes if order["large"] else memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (memory, large_memory_bytes))
        spent = time.process_time()
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(spent) + 1 + cpu_seconds, resource.RLIM_INFINITY)
        )
        try:
            source = open_source(file)
            if source.large and not order["large"]:
                _write(answers, {"large": True})
                continue
            rendition = render(source, order["present"], threads=threads)
        except Unprocessable as error:
            _write(answers, {"failure": error.failure})
        except MemoryError:
            _write(answers, {"failure": Failure.TOO_EXPENSIVE})
        except Exception:
            _write(answers, {"bug": traceback.format_exc()})
        else:
            answer = {
                "width": rendition.width,
                "height": rendition.height,
                "facts": rendition.facts,
                "variants": [asdict(variant) for variant in rendition.variants],
                "contents": {name: len(content) for name, content in rendition.contents.items()},
            }
            _write(answers, answer, *rendition.contents.values())


def _read_orders(pipe: BinaryIO, orders: "queue.SimpleQueue[tuple[dict[str, Any], bytes]]") -> None:
    while length := pipe.read(LENGTH.size):
        order = json.loads(pipe.read(*LENGTH.unpack(length)))
        orders.put((order, pipe.read(order["size_bytes"])))
    os._exit(0)


def _write(answers: BinaryIO, answer: dict[str, Any], *contents: bytes) -> None:
    text = json.dumps(answer).encode()
    answers.write(LENGTH.pack(len(text)))
    answers.write(text)
    answers.writelines(contents)
    answers.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
