"""Ends the processes that tests started when the test run itself ends, even by SIGKILL.

    python -m tests.guard RUN

It waits for its standard input to close. The kernel closes it even if the run is killed.
"""

import sys
from pathlib import Path

from deploy.local import proc

RUN = "PHOTOMESH_TEST_RUN"
"""The environment variable that identifies the processes of a test run."""

# Guards must not be killed: they end by themselves after they end what they guard.
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
            # It has ended, or belongs to another user.
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
