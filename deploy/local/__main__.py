"""The local stack from the command line: `python -m deploy.local --help`."""

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.local.diagnosis import State, Status
from deploy.local.errors import StackError
from deploy.local.process import ROOT, Process
from deploy.local.stack import Progress, Report, Stack
from deploy.local.state import claim_ports

_STYLES = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.DONE: "green",
    State.UNREADY: "yellow",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
    State.DEAD: "bold red",
}

console = Console(highlight=False, soft_wrap=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "var",
    help="The folder for data, logs, keys and pid files.  [default: var]",
)
@click.pass_context
def cli(context: click.Context, state_dir: Path) -> None:
    """Runs the whole mesh on this machine, on loopback only, with all files in var/.

    The ports are a block starting at 18000, or the next free block; PHOTOMESH_PORT_BASE selects
    another one. PHOTOMESH_CACHE=cluster makes Valkey three masters with a replica each; run `clean`
    before you change it.
    """
    context.obj = state_dir.resolve()


@cli.command()
@click.argument("names", nargs=-1)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    help="The time in seconds in which each process must become ready.",
)
@click.pass_obj
def up(state_dir: Path, names: Sequence[str], timeout: float) -> None:
    """Starts all processes, or NAMES and their dependencies, and waits until they are healthy.

    Running processes are left alone unless their code or settings changed. NAMES are processes or
    one of the groups `infrastructure`, `provision`, and `services`.
    """
    began = time.monotonic()
    stack = _stack(state_dir)
    try:
        with _display(stack) as report:
            stack.up(names or None, report=report, timeout=timeout)
    except KeyboardInterrupt:
        running = [name for name in stack.processes if stack.pid(name)]
        console.print(
            f"\nInterrupted. {len(running)} processes are running: `make up` starts the others, "
            "`make down` stops all."
        )
        raise SystemExit(130) from None
    seconds = time.monotonic() - began
    console.print()
    _print_statuses([status for status in stack.status() if not names or status.pid])
    console.print(f"\nReady after {seconds:.1f} s. Data, logs and keys are in {state_dir}.")
    if not names:
        console.print(_api_examples(stack))


@cli.command()
@click.argument("names", nargs=-1)
@click.pass_obj
def down(state_dir: Path, names: Sequence[str]) -> None:
    """Stops all processes, or only NAMES, gracefully. Keeps the data."""
    stack = _stack(state_dir)
    if not any(stack.pid(name) for name in stack.processes):
        console.print("No process is running.")
    with _display(stack) as report:
        stack.down(names or None, report=report)


@cli.command()
@click.pass_obj
def status(state_dir: Path) -> None:
    """Shows the state of all processes. Exits with code 1 if one is not healthy."""
    statuses = _stack(state_dir).status()
    _print_statuses(statuses)
    if not all(status.healthy for status in statuses):
        sys.exit(1)


@cli.command()
@click.argument("service")
@click.option("-f", "--follow", is_flag=True, help="Continue with new lines as they are written.")
@click.option(
    "-n", "--lines", default=100, show_default=True, help="The number of lines to show first."
)
@click.pass_obj
def logs(state_dir: Path, service: str, follow: bool, lines: int) -> None:
    """Shows the log of SERVICE."""
    log = _stack(state_dir).log(service)
    if not log.exists():
        raise StackError(f"{service} has no log yet; start it with make up")
    arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)]
    os.execvp("tail", arguments)  # noqa: S606 - deliberately without a shell


@cli.command()
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def clean(state_dir: Path, yes: bool) -> None:
    """Stops all processes and deletes data, logs, keys, and passwords."""
    if not state_dir.exists():
        console.print(f"{state_dir} does not exist; there is nothing to delete.")
        return
    if not yes:
        click.confirm(f"Stop all processes and delete {state_dir} with all its data?", abort=True)
    stack = _stack(state_dir)
    with _display(stack) as report:
        stack.down(report=report)
    shutil.rmtree(state_dir)
    console.print(f"Deleted {state_dir}.")


@cli.command()
@click.pass_obj
def env(state_dir: Path) -> None:
    """Prints all addresses for a shell: `eval "$(python -m deploy.local env)"`."""
    for name, value in _stack(state_dir).shell_environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


def _stack(state_dir: Path) -> Stack:
    try:
        ports = claim_ports(state_dir)
    except (ValueError, OSError) as error:
        raise StackError(str(error)) from error
    cache = os.environ.get("PHOTOMESH_CACHE", "server")
    if cache not in ("server", "cluster"):
        raise StackError(f"PHOTOMESH_CACHE must be server or cluster, not {cache!r}")
    return Stack(state_dir, ports=ports, cache_cluster=cache == "cluster")


def _api_examples(stack: Stack) -> Text:
    gateway = f"http://127.0.0.1:{stack.ports.gateway_http}"
    return Text(
        f"""
To try the API:

    curl -s {gateway}/v1/accounts -d '{{"username": "ada", "password": "correct horse"}}'
    TOKEN=$(curl -s {gateway}/v1/sessions -d '{{"username": "ada", "password": "correct horse"}}' |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["session"]["accessToken"])')
    curl -s {gateway}/v1/accounts/me -H "Authorization: Bearer $TOKEN"
    curl -s {gateway}/v1/feed -H "Authorization: Bearer $TOKEN"

`make demo` uploads photos and shows a feed. `make help` lists all commands."""
    )


def _print_statuses(statuses: Sequence[Status]) -> None:
    rows = [("process", "address", "pid", "log", "state")]
    for status in statuses:
        port = next(iter(status.ports.values()), None)
        rows.append(
            (
                status.name,
                f"127.0.0.1:{port}" if port else "",
                str(status.pid or ""),
                str(
                    status.log.relative_to(ROOT) if status.log.is_relative_to(ROOT) else status.log
                ),
                f"{status.state}: {status.detail}" if status.detail else str(status.state),
            )
        )
    # Not rich's table, which truncates cells: pids and paths must be complete.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    styles = ["bold", *(_STYLES[status.state] for status in statuses)]
    for row, style in zip(rows, styles, strict=True):
        *cells, last = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text("  ".join(cells) + "  ").append(last.rstrip(), style=style))


@contextmanager
def _display(stack: Stack) -> Iterator[Report]:
    if console.is_terminal:
        display = _LiveDisplay(list(stack.processes.values()))
        with Live(display, console=console, refresh_per_second=12, transient=True):
            yield display.report
    else:
        yield _print_plainly


def _print_plainly(progress: Progress) -> None:
    if progress.state is State.WAITING:
        return
    seconds = f" after {progress.seconds:.1f} s" if progress.seconds >= 0.05 else ""
    detail = f" ({progress.detail})" if progress.detail else ""
    # One write per line, because several threads report.
    sys.stdout.write(f"{progress.name}: {progress.state}{seconds}{detail}\n")
    sys.stdout.flush()


class _LiveDisplay:
    """A table of the processes that have reported a state."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._names = [process.name for process in processes]
        self._latest: dict[str, tuple[Progress, float]] = {}
        self._lock = threading.Lock()
        self._spinner = Spinner("dots")

    def report(self, progress: Progress) -> None:
        with self._lock:
            self._latest[progress.name] = (progress, time.monotonic())

    def __rich__(self) -> RenderableType:
        with self._lock:
            latest = dict(self._latest)
        table = Table.grid(padding=(0, 2))
        for name in self._names:
            if name not in latest:
                continue
            progress, since = latest[name]
            busy = progress.state in (State.STARTING, State.STOPPING)
            waiting = progress.state is State.WAITING
            seconds = progress.seconds + (time.monotonic() - since if busy else 0)
            table.add_row(
                self._spinner.render(time.monotonic()) if busy else Text(" " if waiting else "•"),
                name,
                Text(progress.state, style=_STYLES[progress.state]),
                "" if waiting else f"{seconds:.1f} s",
                Text(progress.detail, style="dim"),
            )
        return Group(table)


def main() -> None:
    try:
        cli()
    except StackError as error:
        console.print(Text(f"\nError: {error}", style="red"))
        sys.exit(1)


if __name__ == "__main__":
    main()
