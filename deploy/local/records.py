"""Records which processes were started, for later commands and for the guard."""

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.local import private, proc
from deploy.local.errors import StackError


@dataclass(frozen=True)
class Record:
    """A started process."""

    identity: proc.Identity
    # The digest of the command, settings, and code with which it was started.
    digest: str
    # Where its output starts in the log.
    log_offset: int


class Records:
    """The pid files of a stack, one JSON file for each started process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Children of this process, which must reap them. Others are known only from their files.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def add(
        self, name: str, child: subprocess.Popen[bytes], *, digest: str, log_offset: int
    ) -> None:
        self._children[name] = child
        identity = proc.identify(child.pid)
        if identity is None:
            # It has already exited. An identity that matches no process represents it.
            identity = proc.Identity(child.pid, -1, proc.boot_id())
        record = Record(identity, digest, log_offset)
        private.write(self._path(name), json.dumps(asdict(record)))

    def read(self, name: str) -> Record | None:
        """Returns the record of a started process, which may have exited; otherwise None."""
        try:
            known = json.loads(self._path(name).read_text())
            return Record(proc.Identity(**known["identity"]), known["digest"], known["log_offset"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def remove(self, name: str) -> None:
        """Removes the record of a process, and reaps a child that is about to exit."""
        self._path(name).unlink(missing_ok=True)
        if child := self._children.pop(name, None):
            child.wait()

    def family(self, name: str) -> set[proc.Identity]:
        """Returns the living process and its children."""
        record = self.read(name)
        return proc.family(record.identity) if record else set()

    def all_families(self) -> set[proc.Identity]:
        """Returns all living processes and their children."""
        names = [path.stem for path in self._folder.glob("*.json")]
        return {member for name in names for member in self.family(name)}

    def running(self, name: str) -> Record | None:
        """Returns the record of a process that runs; otherwise None."""
        record = self.read(name)
        return record if record and record.identity.is_alive() else None

    def exit_code(self, name: str) -> int | None:
        """Returns the exit code of a child that has exited; otherwise None."""
        child = self._children.get(name)
        return child.poll() if child else None

    def started_ns(self, name: str) -> int:
        """Returns when a process was started, in nanoseconds of the file system's clock."""
        return self._path(name).stat().st_mtime_ns

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Excludes other commands on the same stack.

        Raises:
            StackError: another command holds the lock.
        """
        with open(self._folder / "lock", "a+", opener=private.opener) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StackError(
                    f"another command (pid {file.read().strip() or 'unknown'}) is starting or "
                    "stopping this stack; wait until it ends"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
