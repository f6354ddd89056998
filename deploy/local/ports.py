"""Chooses the local stack's ports, and finds the process that holds a port."""

import dataclasses
import random
import socket
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Self, get_origin, get_type_hints

from deploy.processes import MESH

DEFAULT_BASE = 18_000
_BLOCK = 1_000
_LAST_BASE = 31_000
_BASE_STEP = 2_000

# Below the kernel's ephemeral range, so that an outgoing connection cannot take a port before the
# server binds it.
_FREE_RANGE = range(10_000, 18_000)
# Ports are allocated in runs; each run holds more than a stack needs.
_RUN = 64


@dataclasses.dataclass(frozen=True)
class Ports:
    """A TCP port on 127.0.0.1 for every listener of the stack.

    Each is annotated with its offset in a block. The offsets keep the well-known last digits: 18432
    is PostgreSQL, 18379 Valkey. Offsets 101 to 199 belong to the mesh's own processes.
    """

    gateway_http: Annotated[int, 80]
    gateway_https: Annotated[int, 443]
    gateway_admin: Annotated[int, 90]
    edge: Annotated[int, 81]
    edge_admin: Annotated[int, 91]
    postgres: Annotated[int, 432]
    valkey: Annotated[int, 379]
    # Used only by a cluster.
    valkey_2: Annotated[int, 380]
    valkey_3: Annotated[int, 381]
    valkey_4: Annotated[int, 382]
    valkey_5: Annotated[int, 383]
    valkey_6: Annotated[int, 384]
    valkey_bus_1: Annotated[int, 385]
    valkey_bus_2: Annotated[int, 386]
    valkey_bus_3: Annotated[int, 387]
    valkey_bus_4: Annotated[int, 388]
    valkey_bus_5: Annotated[int, 389]
    valkey_bus_6: Annotated[int, 390]
    s3: Annotated[int, 333]
    s3_grpc: Annotated[int, 340]
    filer: Annotated[int, 341]
    filer_grpc: Annotated[int, 342]
    master: Annotated[int, 343]
    master_grpc: Annotated[int, 344]
    volume: Annotated[int, 345]
    volume_grpc: Annotated[int, 346]
    s3_admin: Annotated[int, 347]
    s3_admin_grpc: Annotated[int, 348]
    kafka: Annotated[int, 92]
    grpc: Mapping[str, int]
    """The gRPC port of each of the mesh's own processes."""
    rest: Mapping[str, int]
    """The REST port of each process that serves REST itself."""

    @classmethod
    def block(cls, base: int) -> Self:
        """Returns the block of ports that starts at `base` (1024 to 64535)."""
        if not 1_024 <= base <= 65_535 - _BLOCK:
            raise ValueError(f"a block of ports cannot start at {base}: use 1024 to 64535")
        return cls._of(base + offset for offset in _all_offsets())

    @classmethod
    def _of(cls, numbers: Iterable[int]) -> Self:
        """Assigns the port numbers, in the order of `_all_offsets`."""
        left = iter(numbers)
        return cls(
            **dict(zip(_OFFSETS, left, strict=False)),
            grpc={process.name: next(left) for process in MESH},
            rest={process.name: next(left) for process in MESH if process.rest_port},
        )

    def address(self, process: str) -> str:
        """Returns the gRPC address of a process, such as "127.0.0.1:18105"."""
        return f"127.0.0.1:{self.grpc[process]}"

    @property
    def valkey_nodes(self) -> tuple[tuple[int, int], ...]:
        """The servers of a cluster, masters first: the client port and the bus port."""
        return (
            (self.valkey, self.valkey_bus_1),
            (self.valkey_2, self.valkey_bus_2),
            (self.valkey_3, self.valkey_bus_3),
            (self.valkey_4, self.valkey_bus_4),
            (self.valkey_5, self.valkey_bus_5),
            (self.valkey_6, self.valkey_bus_6),
        )

    def all(self) -> list[int]:
        return [
            *(getattr(self, name) for name in _OFFSETS),
            *self.grpc.values(),
            *self.rest.values(),
        ]


_OFFSETS: Mapping[str, int] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Ports, include_extras=True).items()
    if get_origin(hint) is Annotated
}


def free_ports() -> Ports:
    """Returns ports that nothing listens on and that no other process of this machine has claimed.

    They stay claimed for as long as the returned object, or the process, lives.

    Raises:
        OSError: every run of ports from 10000 to 18000 is claimed or has too few free ports.
    """
    needed = len(_all_offsets())
    runs = _FREE_RANGE[::_RUN]
    # Not seeded: two test runs with the same seed must not choose the same ports.
    for first in random.SystemRandom().sample(runs, len(runs)):
        claim = _claim(first)
        if claim is None:
            continue
        free = [port for port in range(first, first + _RUN) if is_free(port)]
        if len(free) >= needed:
            ports = Ports._of(free)
            weakref.finalize(ports, claim.close)
            return ports
        claim.close()
    raise OSError(
        f"every run of {_RUN} ports from {_FREE_RANGE.start} to {_FREE_RANGE.stop} is claimed or "
        "has too few free ports; stop other stacks on this machine"
    )


def _all_offsets() -> list[int]:
    return [
        *_OFFSETS.values(),
        *(process.port for process in MESH),
        *(process.rest_port for process in MESH if process.rest_port),
    ]


def _claim(first: int) -> socket.socket | None:
    """Claims the run of ports that starts at `first`; returns None if another process holds it.

    The claim is an abstract socket, not a file: the kernel releases it when its holder ends.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0photomesh-ports-{first}")
    except OSError:
        claim.close()
        return None
    return claim


def first_free_base() -> int:
    """Returns the first block, from 18000 on, whose ports are all free.

    Raises:
        OSError: every block up to 31000 has a port that is in use.
    """
    for base in range(DEFAULT_BASE, _LAST_BASE + 1, _BASE_STEP):
        if all(map(is_free, Ports.block(base).all())):
            return base
    raise OSError(
        f"no block of ports is free between {DEFAULT_BASE} and {_LAST_BASE + _BLOCK}; "
        "choose one with PHOTOMESH_PORT_BASE"
    )


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Like the servers: connections in TIME_WAIT do not block a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Describes the process that listens on `port`: pid and command line, if visible to us."""
    inodes = _listening_inodes(port)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            for descriptor in (entry / "fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    return f"pid {entry.name} ({_command_line(entry)})"
        except OSError:
            # It has just ended, or belongs to another user.
            continue
    return "a process of another user"


def _listening_inodes(port: int) -> set[str]:
    listen = "0A"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == listen and int(columns[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    return inodes


def _command_line(entry: Path) -> str:
    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return words if len(words) <= 160 else words[:157] + "..."
