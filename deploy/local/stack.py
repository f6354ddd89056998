"""Starts, monitors, and stops the processes of the table."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deploy.local import pki, private, proc
from deploy.local.addresses import REGION, addresses, role_url, superuser_url, valkey_url
from deploy.local.control import Control
from deploy.local.diagnosis import Diagnosis, State, Status
from deploy.local.errors import Cancelled, StackError
from deploy.local.guard import Guard
from deploy.local.launch import prepare
from deploy.local.ports import Ports
from deploy.local.process import Layout, Process
from deploy.local.records import Records
from deploy.local.table import GROUPS, processes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Progress:
    """A process entered a new state."""

    name: str
    state: State
    # Time since this command started to work on the process.
    seconds: float
    detail: str = ""


Report = Callable[[Progress], None]


def _no_report(_: Progress) -> None:
    pass


class Stack:
    """The processes of one clone or of one test run.

    Args:
        state_dir: the folder of data, logs, keys, and pid files; created if missing.
        ports: the ports of all processes.
        ephemeral: the processes end with the process that created this object, however it ends, and
            their data are discarded. Otherwise they keep running.
        environment: additional variables by process name; they override those of the table.
        cache_cluster: whether Valkey is a cluster; otherwise it is one server.

    The methods can be called from several threads, but not concurrently for the same process.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        ports: Ports,
        ephemeral: bool = False,
        environment: Mapping[str, Mapping[str, str]] | None = None,
        cache_cluster: bool = False,
    ) -> None:
        self.layout = Layout(state_dir.resolve())
        self.ports = ports
        self.ephemeral = ephemeral
        self.valkey_url = valkey_url(ports, cluster=cache_cluster)
        for folder in (self.layout.data, self.layout.etc, self.layout.log, self.layout.run):
            private.make_folder(folder)
        self.credentials = pki.ensure(self.layout.pki)
        extra = environment or {}
        self.processes = {
            process.name: replace(
                process, environment={**process.environment, **extra.get(process.name, {})}
            )
            for process in processes(
                self.layout, ports, self.credentials, cache_cluster=cache_cluster
            )
        }
        unknown = set(extra) - set(self.processes)
        if unknown:
            raise StackError(f"there is no process called {', '.join(sorted(unknown))}")
        self._records = Records(self.layout.run)
        self._diagnosis = Diagnosis(self.layout, self._records)
        self._control = Control(self.layout, self._records, self._diagnosis)
        self._guard = Guard(self.layout.run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    # Addresses, for tests and tools.

    @property
    def operator(self) -> Path:
        """The folder of the operator identity: ca.pem, cert.pem, key.pem."""
        return self.layout.pki / "operator"

    @property
    def superuser_url(self) -> str:
        """The URL of PostgreSQL's maintenance database, for the superuser."""
        return superuser_url(self.ports, self.credentials)

    def database_url(self, role: str) -> str:
        """Returns the URL of the services' database, for one of their roles."""
        return role_url(role, self.ports, self.credentials)

    @property
    def kafka_bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports.kafka}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports.s3}"

    def s3(self, keys: pki.KeyPair | None = None) -> "S3Client":
        """Returns an S3 client, by default with the media service's keys."""
        # Imported here because most commands and tests do not need it.
        import boto3
        from botocore.config import Config

        keys = keys or self.credentials.s3_media
        return boto3.client(
            "s3",
            endpoint_url=self.s3_endpoint,
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            region_name=REGION,
            config=Config(retries={"max_attempts": 5}),
        )

    def shell_environment(self) -> dict[str, str]:
        """Returns the variables with which a shell can use the stack and inspect its parts."""
        return {
            **addresses(self.ports, self.valkey_url),
            "PHOTOMESH_GATEWAY": f"http://127.0.0.1:{self.ports.gateway_http}",
            "PHOTOMESH_GATEWAY_TLS": f"https://localhost:{self.ports.gateway_https}",
            "PHOTOMESH_GATEWAY_CA": str(self.layout.pki / "public" / "ca.pem"),
            "PHOTOMESH_OPERATOR_TLS": str(self.operator),
            "PHOTOMESH_ADMIN_DATABASE_URL": self.superuser_url,
            "PHOTOMESH_S3_ACCESS_KEY": self.credentials.s3_media.access_key,
            "PHOTOMESH_S3_SECRET_KEY": self.credentials.s3_media.secret_key,
        }

    # Commands.

    def up(
        self,
        names: Iterable[str] | None = None,
        *,
        report: Report = _no_report,
        timeout: float = 60.0,
    ) -> None:
        """Starts processes and their dependencies, and returns when all are ready.

        Running, unchanged processes are left alone. A process whose command, settings, or code
        changed is restarted. A task in `names` runs even if it ran before.

        Args:
            names: processes or groups; default: all.
            report: receives every change of state; can be called from several threads.
            timeout: the time in seconds in which each process must become ready.

        Raises:
            PortTaken, ProcessDied, NotReadyInTime: the first failure. Processes that were started
                keep running.
        """
        named = self._expand(names) if names is not None else set()
        wanted = self._with_dependencies(named or set(self.processes))
        cancelled = threading.Event()
        futures: dict[str, Future[None]] = {}
        if self.ephemeral:
            self._guard.start()
        with self._records.lock(), ThreadPoolExecutor(len(wanted), "up") as pool:
            self._restrict_access()
            for process in wanted:
                needs = [futures[need] for need in process.depends_on]
                futures[process.name] = pool.submit(
                    self._bring_up,
                    process,
                    needs,
                    report,
                    timeout,
                    cancelled,
                    process.name in named,
                )
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                cancelled.set()
        _raise_first(futures.values())

    def down(
        self,
        names: Iterable[str] | None = None,
        *,
        report: Report = _no_report,
    ) -> None:
        """Stops processes gracefully, dependents before their dependencies.

        An ephemeral stack is killed at once, because its data are discarded.

        Args:
            names: processes or groups; default: all. Other processes that depend on them keep
                running.
            report: receives every change of state; can be called from several threads.
        """
        chosen = self._expand(names) if names is not None else set(self.processes)
        if self.ephemeral:
            proc.kill(member for name in chosen for member in self._records.family(name))
            for name in chosen:
                self._control.forget(self.processes[name])
            if names is None:
                self._guard.stop()
            return
        futures: dict[str, Future[None]] = {}
        with self._records.lock(), ThreadPoolExecutor(max(1, len(chosen)), "down") as pool:
            order = [p for p in reversed(self._with_dependencies(chosen)) if p.name in chosen]
            for process in sorted(order, key=lambda process: not process.ingress):
                dependents = [
                    futures[other.name]
                    for other in self.processes.values()
                    if other.name in futures and (process.name in other.depends_on or other.ingress)
                ]
                futures[process.name] = pool.submit(self._bring_down, process, dependents, report)
        _raise_first(futures.values())

    def start(self, name: str, *, timeout: float = 60.0) -> None:
        """Starts one process, whose dependencies must be up, and waits until it is ready."""
        process = self._process(name)
        if self.ephemeral:
            self._guard.start()
        if process.ready is None:
            self._control.run_task(process, prepare(process), timeout, threading.Event())
            return
        if not self._records.running(name):
            self._control.start(process, prepare(process))
        self.wait_ready(name, timeout=timeout)

    def stop(self, name: str) -> None:
        """Stops one process gracefully; kills it if it takes too long."""
        self._bring_down(self._process(name), [], _no_report)

    def restart(self, name: str, *, timeout: float = 60.0) -> None:
        self.stop(name)
        self.start(name, timeout=timeout)

    def kill(self, name: str) -> None:
        """Kills one process and its children with SIGKILL, as a crash or the OOM killer would."""
        self._control.kill(self._process(name))

    @contextlib.contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """Suspends a process and its children, as if they were overloaded."""
        members = self._records.family(self._process(name).name)
        for member in members:
            os.kill(member.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGCONT)

    def wait_ready(self, name: str, *, timeout: float = 60.0) -> None:
        """Waits until a started process is ready.

        Raises:
            ProcessDied, NotReadyInTime: the process will not become ready.
        """
        self._control.wait_ready(self._process(name), timeout, threading.Event())

    def pid(self, name: str) -> int | None:
        """Returns the pid of a running process; otherwise None."""
        running = self._records.running(self._process(name).name)
        return running.identity.pid if running else None

    def log(self, name: str) -> Path:
        """Returns the file with the output of a process."""
        return self.layout.log_of(self._process(name).name)

    def status(self) -> list[Status]:
        """Checks every process of the table concurrently."""
        with ThreadPoolExecutor(len(self.processes), "status") as pool:
            return list(pool.map(self._diagnosis.status, self.processes.values()))

    def _restrict_access(self) -> None:
        """Removes access for other users from files that earlier versions created.

        Files inside the data folders are left unchanged: other users cannot reach them.
        """
        layout = self.layout
        for folder in (layout.state, *layout.state.iterdir(), *layout.data.iterdir()):
            if folder.is_dir():
                folder.chmod(0o700)
        for folder in (layout.state, layout.etc, layout.log, layout.run):
            for file in folder.iterdir():
                if file.is_file():
                    file.chmod(0o600)

    # The order of starting and stopping.

    def _bring_up(
        self,
        process: Process,
        needs: list[Future[None]],
        report: Report,
        timeout: float,
        cancelled: threading.Event,
        again: bool,
    ) -> None:
        report(Progress(process.name, State.WAITING, 0.0))
        for need in needs:
            # The dependency's own future reports its error.
            if need.exception() is not None:
                raise Cancelled
        if cancelled.is_set():
            raise Cancelled
        began = time.monotonic()

        def enter(state: State, detail: str = "") -> None:
            report(Progress(process.name, state, time.monotonic() - began, detail))

        digest = prepare(process)
        if cancelled.is_set():
            raise Cancelled
        if process.ready is None:
            marker = self.layout.marker_of(process)
            if again or not marker.exists() or marker.read_text() != digest:
                enter(State.STARTING)
                self._control.run_task(process, digest, timeout, cancelled)
                enter(State.DONE)
            else:
                enter(State.DONE, "already done")
            return

        running = self._records.running(process.name)
        if running and running.digest == digest:
            detail = "already running"
        else:
            died = not running and self._records.read(process.name)
            detail = "changed" if running else "had died" if died else ""
            if running:
                enter(State.STOPPING, detail)
                self._control.stop(process)
            enter(State.STARTING, detail)
            self._control.start(process, digest)
        self._control.wait_ready(process, timeout, cancelled)
        enter(State.READY, detail)

    def _bring_down(self, process: Process, dependents: list[Future[None]], report: Report) -> None:
        wait(dependents)
        began = time.monotonic()
        if self._records.read(process.name) is None:
            return
        report(Progress(process.name, State.STOPPING, 0.0))
        in_time = self._control.stop(process)
        detail = "" if in_time else f"killed after {process.stop_seconds:.0f} s"
        report(Progress(process.name, State.STOPPED, time.monotonic() - began, detail))

    def _process(self, name: str) -> Process:
        try:
            return self.processes[name]
        except KeyError:
            raise StackError(
                f"there is no process called {name}; choose from {', '.join(self.processes)}"
            ) from None

    def _expand(self, names: Iterable[str]) -> set[str]:
        return {
            self._process(member).name for name in names for member in GROUPS.get(name, (name,))
        }

    def _with_dependencies(self, names: Iterable[str]) -> list[Process]:
        """Returns the processes and all their dependencies, in dependency order."""
        order: dict[str, Process] = {}

        def visit(process: Process) -> None:
            if process.name in order:
                return
            for need in process.depends_on:
                visit(self._process(need))
            order[process.name] = process

        # In table order, so that the result is deterministic.
        for name, process in self.processes.items():
            if name in names:
                visit(process)
        return list(order.values())


def _raise_first(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, Cancelled):
            raise error
