"""Processes as the kernel knows them: told apart beyond their pid, and ended with their children.

Linux only: everything is read from /proc.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Identity:
    """One life of a pid.

    A pid is used again, after a reboot even by the same program: only with the start time and
    the boot it names one process for ever.
    """

    pid: int
    # Clock ticks after boot.
    started: int
    boot: str

    def is_alive(self) -> bool:
        """Whether this very process runs. A zombie does not, unless threads of it still do."""
        return identify(self.pid) == self


@dataclass(frozen=True)
class _Stat:
    identity: Identity
    parent: int
    session: int


def identify(pid: int) -> Identity | None:
    """The living process that has `pid` now, or None."""
    stat = _stat(pid, boot_id())
    return stat.identity if stat else None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def family(leader: Identity) -> set[Identity]:
    """The leader, its descendants, and whoever else is in its session, as far as they live.

    The leader itself may be gone: a worker pool outlives a killed parent, but stays in its
    session. Session numbers are not given out again while a member lives, and a member is never
    older than its leader, so a stranger cannot be meant.
    """
    if leader.boot != boot_id():
        return set()
    now = identify(leader.pid)
    if now is not None and now != leader:
        # The pid lives another life, so nothing was left of the old session.
        return set()
    stats = list(_all_stats())
    members = {
        stat.identity.pid
        for stat in stats
        if stat.session == leader.pid and stat.identity.started >= leader.started
    }
    # Some children leave the session (PostgreSQL's backends do): follow the parents too.
    while True:
        children = {
            stat.identity.pid
            for stat in stats
            if stat.parent in members and stat.identity.pid not in members
        }
        if not children:
            break
        members |= children
    return {stat.identity for stat in stats if stat.identity.pid in members}


def send(identity: Identity, signum: signal.Signals) -> None:
    """Signals this very process; one that has ended is no error."""
    if identity.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, signum)


def end(leader: Identity, *, polite: signal.Signals, seconds: float) -> bool:
    """Asks the leader to end and waits up to `seconds`; then kills what is left of its family.

    Returns whether it ended by itself.
    """
    before = family(leader)
    send(leader, polite)
    ended = await_end([leader], seconds)
    kill(before | family(leader))
    return ended


def kill(victims: Iterable[Identity]) -> None:
    """SIGKILLs and waits until they are gone (they cannot refuse; the kernel needs a moment)."""
    victims = set(victims)
    for victim in victims:
        send(victim, signal.SIGKILL)
    await_end(victims, seconds=10)


def await_end(identities: Iterable[Identity], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    waiting = set(identities)
    while True:
        waiting = {identity for identity in waiting if identity.is_alive()}
        if not waiting:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)


def cpu_seconds(pid: int) -> float:
    """Returns what a living process has used of the processors so far, without its children."""
    user, system = _fields(Path(f"/proc/{pid}/stat").read_text())[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _all_stats() -> Iterable[_Stat]:
    boot = boot_id()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name), boot)):
            yield stat


def _stat(pid: int, boot: str) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = _fields(text)
    state, parent, session, threads, started = (fields[each] for each in (0, 1, 3, 17, 19))
    # The state is that of the first thread alone. Killed, it is often a zombie some tenths of a
    # second before the last of the others, and until then the process holds its ports.
    if state == "X" or (state == "Z" and threads in "01"):
        return None
    return _Stat(Identity(pid, int(started), boot), int(parent), int(session))


def _fields(stat: str) -> list[str]:
    """Returns what a stat file tells behind the command's name, from the state on."""
    # The name comes in brackets and may hold anything, brackets too.
    return stat[stat.rindex(")") + 2 :].split()
