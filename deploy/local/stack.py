"""Starts, monitors, and stops the processes of the table."""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deploy.local import pki, proc
from deploy.local.ports import Ports, holder, is_free
from deploy.local.readiness import NotReady
from deploy.local.table import (
    GROUPS,
    REGION,
    ROOT,
    Layout,
    Process,
    addresses,
    processes,
    role_url,
    superuser_url,
    valkey_url,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# The poll interval starts short and grows to a tenth of the elapsed time: constant polling of a
# dozen processes would slow down their start.
_POLL_SHARE = 0.1
_POLL_SECONDS = (0.01, 0.15)
_TAIL_LINES = 20

# The variables that processes inherit. Others (proxies, AWS_*, PG*, PYTHON*, another clone's
# PHOTOMESH_*) would make the stack behave differently from shell to shell.
_INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


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
class Progress:
    """A process entered a new state."""

    name: str
    state: State
    # Time since this command started to work on the process.
    seconds: float
    detail: str = ""


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


class StackError(Exception):
    """The stack cannot perform a command; the text is for users."""


class PortTaken(StackError):
    """Another process listens on a port of the stack."""

    def __init__(self, port: int, purpose: str, process: str) -> None:
        super().__init__(
            f"port {port}, wanted for {purpose} of {process}, is taken by {holder(port)}. "
            "End that, or choose another block of ports: PHOTOMESH_PORT_BASE=20000 make up"
        )
        self.port = port


class ProcessDied(StackError):
    """A process exited before it was ready."""

    def __init__(self, name: str, how: str, tail: str, log: Path) -> None:
        super().__init__(f"{name} {how}. The end of {log}:\n{tail}")
        self.name = name


class NotReadyInTime(StackError):
    """A process runs but does not become ready."""

    def __init__(self, name: str, seconds: float, reason: str, tail: str, log: Path) -> None:
        super().__init__(
            f"{name} is not ready after {seconds:.0f} s: {reason}. The end of {log}:\n{tail}"
        )
        self.name = name


class _Cancelled(Exception):
    """Another process failed, or the user pressed Ctrl-C."""


@dataclass(frozen=True)
class _Record:
    """What var/run stores about a started process."""

    identity: proc.Identity
    digest: str
    # Where the output of this run starts in the log.
    log_offset: int


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
            _make_folder(folder)
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
        # Child processes, which this object must reap. Others are known only from their pid files.
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._guard_lock = threading.Lock()

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
        """The folder of the SREs' identity: ca.pem, cert.pem, key.pem."""
        return self.layout.pki / "operator"

    @property
    def superuser_url(self) -> str:
        """The URL of PostgreSQL's maintenance database, as superuser."""
        return superuser_url(self.ports, self.credentials)

    def database_url(self, role: str) -> str:
        """The URL of the services' database, as one of their roles."""
        return role_url(role, self.ports, self.credentials)

    @property
    def kafka_bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports.kafka}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports.s3}"

    def s3(self, keys: pki.KeyPair | None = None) -> "S3Client":
        """An S3 client, with the media service's keys by default."""
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
        """The variables with which a shell can use the stack and inspect its parts."""
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
        changed is restarted. A task named here runs even if it ran before.

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
        with self._lock(), ThreadPoolExecutor(len(wanted), "up") as pool:
            self._tighten()
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
        self._raise_first(futures.values())

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
            proc.kill(
                member
                for name in chosen
                if (record := self._record(name))
                for member in proc.family(record.identity)
            )
            for name in chosen:
                self._forget(name)
            if names is None:
                self._dismiss_guard()
            return
        futures: dict[str, Future[None]] = {}
        with self._lock(), ThreadPoolExecutor(max(1, len(chosen)), "down") as pool:
            order = [p for p in reversed(self._with_dependencies(chosen)) if p.name in chosen]
            for process in sorted(order, key=lambda process: not process.front_door):
                dependents = [
                    futures[other.name]
                    for other in self.processes.values()
                    if other.name in futures
                    and (process.name in other.depends_on or other.front_door)
                ]
                futures[process.name] = pool.submit(self._bring_down, process, dependents, report)
        self._raise_first(futures.values())

    def start(self, name: str, *, timeout: float = 60.0) -> None:
        """Starts one process, whose dependencies must be up, and waits until it is ready."""
        process = self._process(name)
        if process.ready is None:
            self._run_task(process, self._digest(process), timeout, threading.Event())
            return
        if self.pid(name) is None:
            self._start(process)
        self.wait_ready(name, timeout=timeout)

    def stop(self, name: str) -> None:
        """Stops one process gracefully; kills it if it takes too long."""
        self._bring_down(self._process(name), [], _no_report)

    def restart(self, name: str, *, timeout: float = 60.0) -> None:
        self.stop(name)
        self.start(name, timeout=timeout)

    def kill(self, name: str) -> None:
        """Kills one process and its children with SIGKILL, as a crash or the OOM killer would."""
        if record := self._record(self._process(name).name):
            proc.kill(proc.family(record.identity))
        self._forget(name)

    @contextlib.contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """Suspends a process and its children, as if they were overloaded."""
        record = self._record(self._process(name).name)
        members = proc.family(record.identity) if record else set()
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
        self._await_ready(self._process(name), timeout, threading.Event())

    def pid(self, name: str) -> int | None:
        """The pid of a running process; otherwise None."""
        record = self._record(self._process(name).name)
        return record.identity.pid if record and record.identity.is_alive() else None

    def log(self, name: str) -> Path:
        """The file that holds the output of a process."""
        return self.layout.log / f"{self._process(name).name}.log"

    def status(self) -> list[Status]:
        """Checks every process of the table concurrently."""
        with ThreadPoolExecutor(len(self.processes), "status") as pool:
            return list(pool.map(self._status, self.processes.values()))

    def _tighten(self) -> None:
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

    # Starting and stopping one process.

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
                raise _Cancelled
        if cancelled.is_set():
            raise _Cancelled
        began = time.monotonic()

        def tell(state: State, detail: str = "") -> None:
            report(Progress(process.name, state, time.monotonic() - began, detail))

        self._write_config(process)
        if cancelled.is_set():
            raise _Cancelled
        digest = self._digest(process)
        if process.ready is None:
            marker = self._marker(process)
            if again or not marker.exists() or marker.read_text() != digest:
                tell(State.STARTING)
                self._run_task(process, digest, timeout, cancelled)
                tell(State.DONE)
            else:
                tell(State.DONE, "nothing new")
            return

        record = self._record(process.name)
        detail = "runs already"
        if record and record.identity.is_alive():
            if record.digest != digest:
                tell(State.STOPPING, "it changed")
                self._end(process, record)
                record, detail = None, "it changed"
        elif record:
            record, detail = None, "it had died"
        else:
            detail = ""
        if not record:
            tell(State.STARTING, detail)
            self._start(process)
        self._await_ready(process, timeout, cancelled)
        tell(State.READY, detail)

    def _bring_down(self, process: Process, dependents: list[Future[None]], report: Report) -> None:
        wait(dependents)
        began = time.monotonic()
        record = self._record(process.name)
        if record is None:
            return
        report(Progress(process.name, State.STOPPING, 0.0))
        ended = self._end(process, record)
        detail = "" if ended else f"killed after {process.stop_seconds:.0f} s"
        report(Progress(process.name, State.STOPPED, time.monotonic() - began, detail))

    def _end(self, process: Process, record: _Record) -> bool:
        if process.name in self._children:
            # An exited child stays a zombie, which counts as ended, until it is reaped.
            self._children[process.name].poll()
        ended = proc.end(record.identity, polite=process.stop_signal, seconds=process.stop_seconds)
        self._forget(process.name)
        return ended

    def _start(self, process: Process) -> None:
        if record := self._record(process.name):
            # It died unnoticed. Its children may still run and hold its ports.
            proc.kill(proc.family(record.identity))
            self._forget(process.name)
        for purpose, port in process.ports.items():
            if not is_free(port):
                raise PortTaken(port, purpose, process.name)
        self._write_config(process)
        self._spawn(process, self._digest(process))

    def _spawn(self, process: Process, digest: str) -> None:
        try:
            child, offset = self._launch(process)
        except OSError as error:
            raise StackError(f"{process.name} cannot be started: {error}") from error
        self._children[process.name] = child
        identity = proc.identify(child.pid)
        if identity is None:
            # It has already exited. An identity that matches no process represents it.
            identity = proc.Identity(child.pid, -1, proc.boot_id())
        self._keep(process.name, _Record(identity, digest, offset))
        if self.ephemeral:
            self._watch_over()

    def _launch(self, process: Process) -> tuple[subprocess.Popen[bytes], int]:
        """Returns the new child process, and where its output starts in the log."""
        if process.folder is not None:
            _make_folder(process.folder)
        log = self.log(process.name)
        with open(log, "ab", opener=_open_private) as output:
            offset = output.tell()
            child = subprocess.Popen(
                process.command,
                # A new session, so that neither Ctrl-C nor a closed terminal affects it.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(process),
                cwd=self.layout.data,
                umask=0o077,
            )
        # Core dumps would contain the keys and passwords in its memory.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
        return child, offset

    def _run_task(
        self, process: Process, digest: str, timeout: float, cancelled: threading.Event
    ) -> None:
        marker = self._marker(process)
        marker.unlink(missing_ok=True)
        self._spawn(process, digest)
        child = self._children[process.name]
        began = time.monotonic()
        while (code := child.poll()) is None:
            if cancelled.is_set() or time.monotonic() > began + timeout:
                self.kill(process.name)
                if cancelled.is_set():
                    raise _Cancelled
                raise self._late(process, timeout, "it has not ended")
            _pause(began)
        died = self._died(process, code)
        self._forget(process.name)
        if code:
            raise died
        _write(marker, digest)

    def _await_ready(self, process: Process, timeout: float, cancelled: threading.Event) -> None:
        if process.ready is None:
            return
        began = time.monotonic()
        while True:
            if cancelled.is_set():
                raise _Cancelled
            try:
                process.ready.check()
            except (OSError, NotReady) as error:
                reason = str(error)
            else:
                # Another process might have answered the check.
                self._raise_if_dead(process)
                return
            self._raise_if_dead(process)
            if time.monotonic() > began + timeout:
                raise self._late(process, timeout, reason)
            _pause(began)

    def _raise_if_dead(self, process: Process) -> None:
        child = self._children.get(process.name)
        if child is not None:
            if (code := child.poll()) is not None:
                died = self._died(process, code)
                self._forget(process.name)
                raise died
            return
        record = self._record(process.name)
        if record is None or not record.identity.is_alive():
            raise self._died(process, None)

    def _status(self, process: Process) -> Status:
        def status(state: State, pid: int | None = None, detail: str = "") -> Status:
            return Status(process.name, state, process.ports, pid, self.log(process.name), detail)

        if process.ready is None:
            done = self._marker(process).exists()
            return status(State.DONE if done else State.STOPPED)
        record = self._record(process.name)
        if record is None:
            return status(State.STOPPED)
        if not record.identity.is_alive():
            return status(State.DEAD, detail=f"pid {record.identity.pid} is gone")
        try:
            process.ready.check()
        except (OSError, NotReady) as error:
            return status(State.UNREADY, record.identity.pid, str(error).splitlines()[0])
        return status(State.READY, record.identity.pid)

    # What is known about a process.

    def _process(self, name: str) -> Process:
        try:
            return self.processes[name]
        except KeyError:
            raise StackError(
                f"there is no process called {name}; there are {', '.join(self.processes)}"
            ) from None

    def _expand(self, names: Iterable[str]) -> set[str]:
        return {
            self._process(member).name for name in names for member in GROUPS.get(name, (name,))
        }

    def _with_dependencies(self, names: Iterable[str]) -> list[Process]:
        """The processes and all their dependencies, in dependency order."""
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

    def _environment(self, process: Process) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        paths = os.pathsep.join((str(ROOT), str(ROOT / "gen")))
        python = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        return {**inherited, **python, **process.environment}

    def _digest(self, process: Process) -> str:
        """Changes when a restart would behave differently from the running process."""
        return _digest(
            json.dumps([process.command, dict(process.environment)]),
            ROOT / "requirements.lock",
            *(config.path for config in process.config),
            *process.sources,
        )

    def _write_config(self, process: Process) -> None:
        for config in process.config:
            inputs = _digest(json.dumps(dict(process.environment)), *config.inputs)
            known = config.path.with_suffix(".inputs")
            if (
                config.inputs
                and config.path.exists()
                and known.exists()
                and known.read_text() == inputs
            ):
                continue
            known.unlink(missing_ok=True)
            try:
                text = config.render(process.environment)
            except (ValueError, OSError) as error:
                raise StackError(
                    f"{config.path.name} of {process.name} cannot be written: {error}"
                ) from error
            _write(config.path, text)
            _write(known, inputs)

    def _marker(self, task: Process) -> Path:
        # Beside the data that the task prepares, so that both are deleted together.
        return self.layout.data / (task.prepares or task.name) / f"{task.name}.done"

    def _tail(self, process: Process) -> str:
        """Returns the last lines of this run: lines of an earlier one would mislead."""
        record = self._record(process.name)
        offset = record.log_offset if record else 0
        log = self.log(process.name)
        copy = log.with_suffix(".log.1")
        text = b""
        if record and copy.exists():
            began = self._record_path(process.name).stat().st_mtime_ns
            if copy.stat().st_mtime_ns > began:
                # Rotated since. In the copy the run starts where it started in the log, unless
                # the log was rotated again.
                text = _end_of(copy, offset if offset < copy.stat().st_size else 0)
                offset = 0
        if log.exists():
            text += _end_of(log, offset)
        lines = text.decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (it wrote nothing)"

    def _died(self, process: Process, code: int | None) -> ProcessDied:
        if code is None:
            how = "is gone"
        elif code < 0:
            how = f"was ended by signal {-code} ({_signal_name(-code)})"
        else:
            how = f"ended with code {code}"
        return ProcessDied(process.name, how, self._tail(process), self.log(process.name))

    def _late(self, process: Process, timeout: float, reason: str) -> NotReadyInTime:
        log = self.log(process.name)
        return NotReadyInTime(process.name, timeout, reason, self._tail(process), log)

    # Pid files.

    def _record_path(self, name: str) -> Path:
        return self.layout.run / f"{name}.json"

    def _record(self, name: str) -> _Record | None:
        try:
            known = json.loads(self._record_path(name).read_text())
            return _Record(proc.Identity(**known["identity"]), known["digest"], known["log_offset"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, name: str, record: _Record) -> None:
        path = self._record_path(name)
        draft = path.with_suffix(".new")
        _write(draft, json.dumps(asdict(record)))
        draft.replace(path)

    def _forget(self, name: str) -> None:
        self._record_path(name).unlink(missing_ok=True)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait()
        for path in self.processes[name].litter:
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.layout.run / "lock", "a+", opener=_open_private) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StackError(
                    f"another command (pid {file.read().strip() or 'unknown'}) is starting or "
                    "stopping this stack; wait for it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _watch_over(self) -> None:
        """Starts the guard, which kills the processes when this process ends, however it ends."""
        with self._guard_lock:
            if self._guard is None:
                self._guard = subprocess.Popen(
                    [sys.executable, "-m", "deploy.local.guard", str(self.layout.run)],
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                    cwd=ROOT,
                )

    def _dismiss_guard(self) -> None:
        with self._guard_lock:
            if self._guard is not None:
                self._guard.communicate()
                self._guard = None

    @staticmethod
    def _raise_first(futures: Iterable[Future[None]]) -> None:
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, _Cancelled):
                raise error


def _pause(began: float) -> None:
    shortest, longest = _POLL_SECONDS
    waited = time.monotonic() - began
    time.sleep(min(longest, max(shortest, waited * _POLL_SHARE)))


def _end_of(path: Path, offset: int) -> bytes:
    """Returns what a file holds behind an offset, at most the last 64 KiB."""
    with path.open("rb") as file:
        file.seek(max(offset, path.stat().st_size - 2**16))
        return file.read()


def _make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, accessible only to the owner."""
    # Path.mkdir would create the parents with default permissions.
    if not folder.parent.exists():
        _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(path: Path, text: str) -> None:
    """Writes a file that only its owner can read: it may contain secrets."""
    with open(path, "w", opener=_open_private) as file:
        file.write(text)


def _digest(text: str, *paths: Path) -> str:
    """The digest of a text, of files, and of all files in folders."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
            # Compiled code follows from the source and can change at any time; pages of
            # documentation do not change a process.
            if file.is_file() and file.suffix not in (".pyc", ".md"):
                digest.update(str(file).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
