"""An entry of the process table, and the folders of a stack."""

import importlib.util
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.readiness import Readiness

ROOT = Path(__file__).parents[2]

DESCRIPTORS = ROOT / "gen/photomesh.binpb"
"""The compiled contracts. They represent all generated code."""


@dataclass(frozen=True)
class Layout:
    """The folders of a stack: `var/` of the clone, or a test's temporary folder."""

    state: Path

    @property
    def data(self) -> Path:
        return self.state / "data"

    @property
    def etc(self) -> Path:
        return self.state / "etc"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    def log_of(self, process: str) -> Path:
        """Returns the file with the output of a process."""
        return self.log / f"{process}.log"

    def marker_of(self, task: "Process") -> Path:
        """Returns the file with the digest for which a task is done."""
        # Beside the data that the task prepares, so that both are deleted together.
        return self.data / (task.prepares or task.name) / f"{task.name}.done"


@dataclass(frozen=True)
class ConfigFile:
    """A file to write before the process starts.

    It is rendered from the process's environment. If rendering is slow, `inputs` names the other
    files and folders that determine the text: it is rendered again only when they or the
    environment change.
    """

    path: Path
    render: Callable[[Mapping[str, str]], str]
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process: its command, its dependencies, and its readiness check.

    Without `ready`, it is a task: it must exit with code 0.
    """

    name: str
    command: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    # The purpose and number of each port.
    ports: Mapping[str, int] = field(default_factory=dict)
    ready: Readiness | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    config: tuple[ConfigFile, ...] = ()
    # The folder of its data, created if missing.
    folder: Path | None = None
    # Files and folders that it reads once: a change of their content restarts it.
    sources: tuple[Path, ...] = ()
    # For a task: the process whose data it prepares. It runs again if these are deleted.
    prepares: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    # Files outside its folder that it leaves behind when killed.
    stale_files: tuple[Path, ...] = ()
    # Whether it accepts external requests: it stops before the processes that it forwards them to.
    ingress: bool = False


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Returns the command that runs a module of ours."""
    return (sys.executable, "-m", module, *arguments)


def packaged(package: str, path: str) -> Path:
    """Returns the path of a program in an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed; run make venv")
    return Path(spec.origin).parent / path
