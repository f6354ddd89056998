"""Ends the processes of an ephemeral stack when its creator ends, even by SIGKILL.

    python -m deploy.local.guard RUN_FOLDER

It waits until its standard input is closed, which the kernel does when a process dies.
"""

import subprocess
import sys
import threading
from pathlib import Path

from deploy.local import proc
from deploy.local.records import Records

_ROOT = Path(__file__).parents[2]


class Guard:
    """Runs this program as a child of the process that created a stack."""

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the guard unless it runs."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "deploy.local.guard", str(self._run_folder)],
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                    cwd=_ROOT,
                )

    def stop(self) -> None:
        """Waits until the guard has killed all processes that still run."""
        with self._lock:
            if self._process is not None:
                self._process.communicate()
                self._process = None


def main() -> None:
    records = Records(Path(sys.argv[1]))
    sys.stdin.buffer.read()
    proc.kill(records.all_families())


if __name__ == "__main__":
    main()
