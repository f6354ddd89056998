"""Errors of the commands of the stack. Their texts are for users."""

from pathlib import Path

from deploy.local.ports import holder


class StackError(Exception):
    """The stack cannot perform a command."""


class PortTaken(StackError):
    """Another process listens on a port of the stack."""

    def __init__(self, port: int, purpose: str, process: str) -> None:
        super().__init__(
            f"port {port}, needed for {purpose} of {process}, is in use by {holder(port)}. Stop "
            "that process, or use another block of ports: PHOTOMESH_PORT_BASE=20000 make up"
        )


class ProcessDied(StackError):
    """A process exited before it was ready."""

    def __init__(self, name: str, how: str, tail: str, log: Path) -> None:
        super().__init__(f"{name} {how}. The last lines of {log}:\n{tail}")


class NotReadyInTime(StackError):
    """A process runs but does not become ready."""

    def __init__(self, name: str, seconds: float, reason: str, tail: str, log: Path) -> None:
        super().__init__(
            f"{name} is not ready after {seconds:.0f} s: {reason}. The last lines of {log}:\n{tail}"
        )


class Cancelled(Exception):
    """Another process failed, or the user pressed Ctrl-C."""
