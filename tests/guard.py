"""Ends what tests have started when the process that runs them is gone, even by SIGKILL.

    python -m tests.guard RUN

It waits until its standard input is closed, which the kernel does for a dead process too.
"""

import sys
from pathlib import Path

from deploy.local import proc

RUN = "PHOTOMESH_TEST_RUN"
"""The environment variable by which the processes that a test run started are known."""

# They end by themselves once they have ended what they guard, which must not be prevented.
_GUARDS = {b"tests.guard", b"deploy.local.guard"}


def processes_of(run: str) -> set[proc.Identity]:
    """Returns the living processes whose environment names the run, without guards."""
    entry = f"{RUN}={run}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            # It has ended, or is somebody else's.
            continue
        if entry in environment and _GUARDS.isdisjoint(command):
            process = proc.identify(int(folder.name))
            if process is not None:
                found.add(process)
    return found


def main() -> None:
    sys.stdin.buffer.read()
    proc.kill(processes_of(sys.argv[1]))


if __name__ == "__main__":
    main()
