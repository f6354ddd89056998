"""The process that decodes: `python -m services.media.pipeline.child MEMORY CPU`.

It holds no secret and no connection, only pipes to the worker (see `renderers`):

    in:  the length of a file (8 bytes, big-endian), the file
    out: the length of an answer (4 bytes), the answer (JSON), then the content of each variant

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
from typing import BinaryIO

from services.media.pipeline.outputs import Failure, Unprocessable
from services.media.pipeline.render import render

FILE_LENGTH = struct.Struct(">Q")
ANSWER_LENGTH = struct.Struct(">I")


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Answers one file after the other.

    Args:
        memory_bytes: how much the process may allocate, all told.
        cpu_seconds: how long one file may keep a core busy; SIGXCPU ends the process then.
    """
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # A crash is an outcome here; its core would be as large as the memory limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    files: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # In a thread of its own, so that the end of the input is noticed in the middle of a file.
    threading.Thread(target=_read_files, args=(sys.stdin.buffer, files), daemon=True).start()
    _write(answers, {"ready": True})
    while True:
        file = files.get()
        spent = time.process_time()
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(spent) + 1 + cpu_seconds, resource.RLIM_INFINITY)
        )
        try:
            rendition = render(file)
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
                "variants": [asdict(variant) for variant, _ in rendition.files],
            }
            _write(answers, answer, *(content for _, content in rendition.files))


def _read_files(pipe: BinaryIO, files: "queue.SimpleQueue[bytes]") -> None:
    while length := pipe.read(FILE_LENGTH.size):
        files.put(pipe.read(*FILE_LENGTH.unpack(length)))
    os._exit(0)


def _write(answers: BinaryIO, answer: dict[str, object], *contents: bytes) -> None:
    text = json.dumps(answer).encode()
    answers.write(ANSWER_LENGTH.pack(len(text)))
    answers.write(text)
    answers.writelines(contents)
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
