"""Creates .venv from requirements.lock with nothing but Python 3.11 or newer.

    python3 deploy/local/bootstrap.py

It does nothing if .venv matches the lock, and starts over if an earlier run was interrupted. It
uses only the standard library, and only syntax that Python 3.7 can parse, so that an old Python can
report the problem.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "photomesh.stamp"

MIN_PYTHON = (3, 11)
# Tried in this order if `python3` is too old.
OTHER_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3.14")

# Maps pip's settings to variables of uv, which does not read pip's files and variables.
UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def main() -> None:
    require_python()
    # If two commands run in a fresh clone, the second waits and then finds nothing to do.
    folder = os.open(str(ROOT), os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    place, lock = fingerprint()
    known = STAMP.read_text().splitlines() if STAMP.exists() else []
    # False for a symlink to a Python that was removed.
    exists = known[:1] == [place] and (VENV / "bin" / "python").exists()
    if exists and known[1:] == [lock]:
        return
    began = time.monotonic()
    # Without the stamp, an interrupted run does not count as complete.
    if known:
        STAMP.unlink()
    try:
        if not exists:
            make_environment()
        install_packages()
    except subprocess.CalledProcessError as error:
        fail(
            "this command failed, with the output above: "
            + " ".join(shlex.quote(str(w)) for w in error.cmd)
        )
    except KeyboardInterrupt:
        fail("interrupted; the next run starts over")
    STAMP.write_text(f"{place}\n{lock}\n")
    say(f"Created .venv in {time.monotonic() - began:.0f} s.")


def require_python() -> None:
    if not sys.platform.startswith("linux"):
        fail("the local stack needs Linux; on other systems, use a Linux container or VM")
    if sys.version_info < MIN_PYTHON:
        for name in OTHER_PYTHONS:
            other = shutil.which(name)
            if other and runs(other, "-c", "import venv, ensurepip"):
                os.execv(other, [other, *sys.argv])  # noqa: S606 - deliberately without a shell
        fail(
            f"Photomesh needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer; {sys.executable} is "
            f"{sys.version.split()[0]}. Install a newer one, or pass its path: "
            "make PYTHON=/path/to/python3.11 ..."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail(
            f"{sys.executable} cannot create virtual environments: it lacks venv or ensurepip. On "
            "Debian and Ubuntu: apt install python3-venv. Or pass the path of another Python: "
            "make PYTHON=/path/to/python3.11 ..."
        )


def fingerprint() -> tuple[str, str]:
    """Returns what .venv is bound to (its scripts contain its folder and Python), and the lock."""
    place = f"{ROOT} Python {sys.version_info[0]}.{sys.version_info[1]}"
    return place, hashlib.sha256(LOCK.read_bytes()).hexdigest()


def make_environment() -> None:
    say(f"Creating .venv with Python {sys.version.split()[0]} ...")
    if VENV.exists():
        shutil.rmtree(str(VENV))
    run(sys.executable, "-m", "venv", VENV)
    say("Installing uv ...")
    run(
        VENV / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--requirement",
        "/dev/stdin",
        text=uv_requirement(),
    )


def uv_requirement() -> str:
    """Returns uv's entry of the lock, with its hashes."""
    entry: list[str] = []
    for line in LOCK.read_text().splitlines():
        if entry or line.startswith("uv=="):
            entry.append(line)
            if not line.endswith("\\"):
                break
    return "\n".join(entry) + "\n"


def install_packages() -> None:
    say("Installing the packages of requirements.lock, by their hashes ...")
    run(
        VENV / "bin" / "uv",
        "pip",
        "install",
        "--python",
        VENV / "bin" / "python",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--requirement",
        LOCK,
        env=uv_environment(),
    )


def uv_environment() -> dict[str, str]:
    """Returns the current environment, with pip's settings added unless uv has its own."""
    environment = dict(os.environ)
    # Otherwise uv would prefer an active environment.
    environment.pop("VIRTUAL_ENV", None)
    # Search all indexes, as pip does; the hashes identify the right file.
    environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    for name, value in pip_settings():
        variable = UV_VARIABLES.get(name)
        if variable:
            environment.setdefault(variable, " ".join(value.split()))
    return environment


def pip_settings() -> list[tuple[str, str]]:
    """Returns the names and values of pip's settings, highest priority first."""
    listed = subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        text=True,
    )
    settings = []
    for line in listed.stdout.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            # Such as  global.index-url='https://...'  or  :env:.find-links='/wheels'
            source, _, name = key.rpartition(".")
            settings.append((source, name, ast.literal_eval(value)))
    rank = {":env:": 0, "install": 1}
    settings.sort(key=lambda setting: rank.get(setting[0], 2))
    return [(name, value) for _, name, value in settings]


def run(*command: object, env: dict[str, str] | None = None, text: str | None = None) -> None:
    subprocess.run([str(word) for word in command], check=True, env=env, input=text, text=True)


def runs(*command: object) -> bool:
    try:
        finished = subprocess.run(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return finished.returncode == 0


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(text: str) -> NoReturn:
    say(f"bootstrap: {text.rstrip('.')}.")
    sys.exit(1)


if __name__ == "__main__":
    main()
