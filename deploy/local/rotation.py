"""Limits the size of a stack's logs while processes write them.

    python -m deploy.local.rotation FOLDER

A log larger than the limit is copied to `<name>.log.1`, replacing the previous copy, and truncated.
Its process appends to the same open file and continues at the new end. Lines written between the
end of the copy and the truncation, which takes microseconds, are lost.

A log and its copy take at most twice the limit plus what the process writes in two intervals.
PHOTOMESH_LOG_LIMIT_BYTES (50 MiB) and PHOTOMESH_LOG_CHECK_SECONDS (5) set limit and interval.
"""

# Few imports: the process is idle most of the time and should use little memory.
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

_LIMIT_BYTES = 50 * 2**20
_CHECK_SECONDS = 5.0
_PIECE_BYTES = 2**20


def main() -> None:
    # Ctrl-C ends it at once, like SIGTERM: it has nothing to finish.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder = Path(sys.argv[1])
    limit = int(os.environ.get("PHOTOMESH_LOG_LIMIT_BYTES", _LIMIT_BYTES))
    interval = float(os.environ.get("PHOTOMESH_LOG_CHECK_SECONDS", _CHECK_SECONDS))
    while True:
        for log in folder.glob("*.log"):
            _check(log, limit)
        time.sleep(interval)


def _check(log: Path, limit: int) -> None:
    try:
        if log.stat().st_size > limit:
            _log("log.rotated", log=log.name, bytes=copy_and_truncate(log))
    except OSError as error:
        # Usually the disk is full. The next round tries again.
        _log("log.rotation_failed", log=log.name, error=str(error))


def copy_and_truncate(log: Path) -> int:
    """Moves the content of a log to `<name>.log.1`; returns the number of bytes.

    Raises:
        OSError: the copy could not be written; the log is unchanged.
    """
    with (
        log.open("r+b", buffering=0) as source,
        # Replaces the old copy in place: both together would take three times the limit.
        log.with_suffix(".log.1").open("wb", buffering=0) as copy,
    ):
        os.fchmod(copy.fileno(), 0o600)
        copied = 0
        while sent := os.sendfile(copy.fileno(), source.fileno(), copied, _PIECE_BYTES):
            copied += sent
        source.truncate(0)
    return copied


def _log(event: str, **fields: object) -> None:
    # Its own log is on the same disk.
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
