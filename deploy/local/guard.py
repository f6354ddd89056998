"""Ends the processes of an ephemeral stack when its creator ends, even by SIGKILL.

    python -m deploy.local.guard RUN_FOLDER

It waits until its standard input is closed, which the kernel does when a process dies.
"""

import json
import sys
from pathlib import Path

from deploy.local import proc


def main() -> None:
    run = Path(sys.argv[1])
    sys.stdin.buffer.read()
    victims = set()
    for path in run.glob("*.json"):
        try:
            identity = proc.Identity(**json.loads(path.read_text())["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        victims |= proc.family(identity)
    proc.kill(victims)


if __name__ == "__main__":
    main()
