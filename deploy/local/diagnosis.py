"""Reports the state of a process, and why it died or is not ready."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deploy.local.errors import NotReadyInTime, ProcessDied
from deploy.local.process import Layout, Process
from deploy.local.readiness import NotReady
from deploy.local.records import Records

_TAIL_LINES = 20
_TAIL_BYTES = 2**16


class State(StrEnum):
    """The state of a process."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    UNREADY = "not ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEAD = "dead"


@dataclass(frozen=True)
class Status:
    """The current state of a process."""

    name: str
    state: State
    ports: Mapping[str, int]
    pid: int | None
    log: Path
    detail: str = ""

    @property
    def healthy(self) -> bool:
        return self.state in (State.READY, State.DONE)


class Diagnosis:
    """Describes the state of a stack's processes."""

    def __init__(self, layout: Layout, records: Records) -> None:
        self._layout = layout
        self._records = records

    def status(self, process: Process) -> Status:
        """Checks a process now."""

        def status(state: State, pid: int | None = None, detail: str = "") -> Status:
            log = self._layout.log_of(process.name)
            return Status(process.name, state, process.ports, pid, log, detail)

        if process.ready is None:
            done = self._layout.marker_of(process).exists()
            return status(State.DONE if done else State.STOPPED)
        record = self._records.read(process.name)
        if record is None:
            return status(State.STOPPED)
        if not record.identity.is_alive():
            return status(State.DEAD, detail=f"pid {record.identity.pid} no longer exists")
        try:
            process.ready.check()
        except (OSError, NotReady) as error:
            return status(State.UNREADY, record.identity.pid, str(error).splitlines()[0])
        return status(State.READY, record.identity.pid)

    def died(self, name: str) -> ProcessDied:
        """Describes the exit of a process."""
        match self._records.exit_code(name):
            case None:
                how = "is no longer running"
            case code if code < 0:
                how = f"was killed by {_signal_name(-code)}"
            case code:
                how = f"exited with code {code}"
        return ProcessDied(name, how, self._tail(name), self._layout.log_of(name))

    def late(self, name: str, timeout: float, reason: str) -> NotReadyInTime:
        """Describes a process that takes too long to become ready."""
        return NotReadyInTime(name, timeout, reason, self._tail(name), self._layout.log_of(name))

    def _tail(self, name: str) -> str:
        """Returns the last lines of the log that the current run wrote."""
        record = self._records.read(name)
        offset = record.log_offset if record else 0
        log = self._layout.log_of(name)
        copy = log.with_suffix(".log.1")
        text = b""
        if record and copy.exists() and copy.stat().st_mtime_ns > self._records.started_ns(name):
            # Rotated during this run. In the copy, the run starts at the same offset, unless there
            # was more than one rotation.
            text = _read_end(copy, offset if offset < copy.stat().st_size else 0)
            offset = 0
        if log.exists():
            text += _read_end(log, offset)
        lines = text.decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (no output)"


def _read_end(path: Path, offset: int) -> bytes:
    """Returns the content of a file from an offset on, at most the last 64 KiB."""
    with path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - _TAIL_BYTES))
        return file.read()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
