"""Processes identified beyond their pid, and ended together with their children.

Linux only: all information comes from /proc. psutil 7.2 would save only 16 of 92 lines of code. It
has neither sessions nor boot ids, its public creation time changes when the clock is set, and it
counts a zombie as running, so this module would still implement identity, family, and waiting.
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
    """One process, identified beyond reuse of its pid.

    The kernel reuses pids, and after a reboot even the same program can get the same pid. The start
    time and the boot id make the identity unique.
    """

    pid: int
    # In clock ticks after boot.
    started: int
    boot: str

    def is_alive(self) -> bool:
        """Returns whether this process is alive. A zombie is not, unless it has living threads."""
        return identify(self.pid) == self


@dataclass(frozen=True)
class _Stat:
    identity: Identity
    parent: int
    session: int


def identify(pid: int) -> Identity | None:
    """Returns the living process that currently has `pid`, or None."""
    stat = _stat(pid, boot_id())
    return stat.identity if stat else None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def family(leader: Identity) -> set[Identity]:
    """Returns the living members of the leader's family: itself, its descendants, and its session.

    The leader itself may have died: a worker pool outlives a killed parent but stays in its
    session. The kernel does not reuse a session number while a member lives, and a member is never
    older than its leader, so an unrelated process cannot match.
    """
    if leader.boot != boot_id():
        return set()
    now = identify(leader.pid)
    if now is not None and now != leader:
        # The pid was reused, so nothing is left of the old session.
        return set()
    stats = list(_all_stats())
    members = {
        stat.identity.pid
        for stat in stats
        if stat.session == leader.pid and stat.identity.started >= leader.started
    }
    # Some children leave the session, such as PostgreSQL's backends: follow the parents too.
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
    """Signals this exact process. Ignores a process that has ended."""
    if identity.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, signum)


def end(leader: Identity, *, signum: signal.Signals, seconds: float) -> bool:
    """Signals the leader and waits up to `seconds`, then kills what is left of its family.

    Returns whether the leader ended in time.
    """
    before = family(leader)
    send(leader, signum)
    ended = await_end([leader], seconds)
    kill(before | family(leader))
    return ended


def kill(victims: Iterable[Identity]) -> None:
    """Sends SIGKILL, and waits up to 10 s until the processes have ended."""
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
    """Returns the CPU time of a living process so far, without its children."""
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
    # The state is that of the main thread only. A killed process is often a zombie some tenths of a
    # second before its last thread ends, and holds its ports until then.
    if state == "X" or (state == "Z" and threads in "01"):
        return None
    return _Stat(Identity(pid, int(started), boot), int(parent), int(session))


def _fields(stat: str) -> list[str]:
    """Returns the fields of a stat file after the command name, starting with the state."""
    # The name is in brackets and can contain anything, including brackets.
    return stat[stat.rindex(")") + 2 :].split()
