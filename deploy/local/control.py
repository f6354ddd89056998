"""Starts and stops one process."""

import contextlib
import signal
import threading
import time

from deploy.local import launch, private, proc
from deploy.local.diagnosis import Diagnosis
from deploy.local.errors import Cancelled, PortTaken
from deploy.local.ports import is_free
from deploy.local.process import Layout, Process
from deploy.local.readiness import NotReady
from deploy.local.records import Records

# The poll interval starts short and grows to a tenth of the elapsed time: constant polling of a
# dozen processes would slow down their start.
_POLL_SHARE = 0.1
_POLL_SECONDS = (0.01, 0.15)


class Control:
    """Starts and stops single processes of a stack. Callers handle dependencies."""

    def __init__(self, layout: Layout, records: Records, diagnosis: Diagnosis) -> None:
        self._layout = layout
        self._records = records
        self._diagnosis = diagnosis

    def start(self, process: Process, digest: str) -> None:
        """Starts a process that does not run.

        Raises:
            PortTaken: another process listens on one of its ports.
        """
        if self._records.read(process.name):
            # It died after the last command. Its children may still run and hold its ports.
            self.kill(process)
        for purpose, port in process.ports.items():
            if not is_free(port):
                raise PortTaken(port, purpose, process.name)
        self._spawn(process, digest)

    def run_task(
        self, process: Process, digest: str, timeout: float, cancelled: threading.Event
    ) -> None:
        """Runs a task until it exits, and marks it as done.

        Raises:
            Cancelled, ProcessDied, NotReadyInTime: the task did not succeed.
        """
        name = process.name
        marker = self._layout.marker_of(process)
        marker.unlink(missing_ok=True)
        self._spawn(process, digest)
        began = time.monotonic()
        while (code := self._records.exit_code(name)) is None:
            if cancelled.is_set():
                self.kill(process)
                raise Cancelled
            if time.monotonic() > began + timeout:
                late = self._diagnosis.late(name, timeout, "it has not finished")
                self.kill(process)
                raise late
            _pause(began)
        died = self._diagnosis.died(name)
        self.forget(process)
        if code:
            raise died
        private.write(marker, digest)

    def wait_ready(self, process: Process, timeout: float, cancelled: threading.Event) -> None:
        """Waits until a started process is ready.

        Raises:
            Cancelled, ProcessDied, NotReadyInTime: the process does not become ready.
        """
        if process.ready is None:
            return
        began = time.monotonic()
        while True:
            if cancelled.is_set():
                raise Cancelled
            reason = None
            try:
                process.ready.check()
            except (OSError, NotReady) as error:
                reason = str(error)
            # Checked even after success, because another process might have responded.
            if not self._records.running(process.name):
                raise self._diagnosis.died(process.name)
            if reason is None:
                return
            if time.monotonic() > began + timeout:
                raise self._diagnosis.late(process.name, timeout, reason)
            _pause(began)

    def stop(self, process: Process) -> bool:
        """Stops a process gracefully; kills it if it takes too long.

        Returns whether it stopped in time.
        """
        record = self._records.read(process.name)
        stopped = record is None or proc.end(
            record.identity, signum=process.stop_signal, seconds=process.stop_seconds
        )
        self.forget(process)
        return stopped

    def kill(self, process: Process) -> None:
        """Kills a process and its children, as a crash or the OOM killer would."""
        if record := self._records.read(process.name):
            # A suspended process starts no child that the kill would miss. Such a child of
            # PostgreSQL would keep a new server from starting for a moment.
            proc.send(record.identity, signal.SIGSTOP)
            proc.kill(proc.family(record.identity))
        self.forget(process)

    def forget(self, process: Process) -> None:
        """Removes the files of a process that has ended, except its data and its log."""
        self._records.remove(process.name)
        for path in process.stale_files:
            with contextlib.suppress(OSError):
                path.unlink()

    def _spawn(self, process: Process, digest: str) -> None:
        child, offset = launch.launch(process, self._layout)
        self._records.add(process.name, child, digest=digest, log_offset=offset)


def _pause(began: float) -> None:
    shortest, longest = _POLL_SECONDS
    waited = time.monotonic() - began
    time.sleep(min(longest, max(shortest, waited * _POLL_SHARE)))
