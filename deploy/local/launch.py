"""Launches one process: its configuration files, environment, and log."""

import contextlib
import hashlib
import json
import os
import resource
import subprocess
from pathlib import Path

from deploy.local import private
from deploy.local.errors import StackError
from deploy.local.process import ROOT, Layout, Process

# The variables that processes inherit. Others (proxies, AWS_*, PG*, PYTHON*, another clone's
# PHOTOMESH_*) would make the stack behave differently from shell to shell.
_INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


def prepare(process: Process) -> str:
    """Writes the configuration files of a process.

    Returns a digest that changes when a restart would behave differently from the running process.

    Raises:
        StackError: a file cannot be rendered.
    """
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
        private.write(config.path, text)
        private.write(known, inputs)
    return _digest(
        json.dumps([process.command, dict(process.environment)]),
        ROOT / "requirements.lock",
        *(config.path for config in process.config),
        *process.sources,
    )


def launch(process: Process, layout: Layout) -> tuple[subprocess.Popen[bytes], int]:
    """Returns the new child process, and where its output starts in the log.

    Raises:
        StackError: the program or its folder is missing.
    """
    try:
        if process.folder is not None:
            private.make_folder(process.folder)
        with open(layout.log_of(process.name), "ab", opener=private.opener) as output:
            offset = output.tell()
            child = subprocess.Popen(
                process.command,
                # A new session, so that neither Ctrl-C nor a closed terminal affects it.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(process),
                cwd=layout.data,
                umask=0o077,
            )
    except OSError as error:
        raise StackError(f"{process.name} cannot be started: {error}") from error
    # Core dumps would contain the keys and passwords in its memory.
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    return child, offset


def _environment(process: Process) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    paths = os.pathsep.join((str(ROOT), str(ROOT / "gen")))
    # gRPC's own log is plain text, and errors of calls are in the logs of the services.
    python = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "ERROR"}
    return {**inherited, **python, **process.environment}


def _digest(text: str, *paths: Path) -> str:
    """Returns the digest of a text, of files, and of all files in folders."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
            # Compiled code follows from the source and can change at any time; pages of
            # documentation do not change a process.
            if file.is_file() and file.suffix not in (".pyc", ".md"):
                digest.update(str(file).encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
