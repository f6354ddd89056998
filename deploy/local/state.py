"""The state of a clone that persists between commands: its block of ports."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.local.ports import Ports, first_free_base

PORT_BASE_VARIABLE = "PHOTOMESH_PORT_BASE"


@dataclass(frozen=True)
class State:
    """The content of state.json."""

    port_base: int

    @property
    def ports(self) -> Ports:
        return Ports.block(self.port_base)


def read(state_dir: Path) -> State | None:
    """Returns what an earlier command stored, or None in a fresh clone."""
    try:
        known = json.loads((state_dir / "state.json").read_text())
        return State(port_base=int(known["port_base"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def claim(state_dir: Path, environment: Mapping[str, str] = os.environ) -> State:
    """Assigns the clone its permanent block of ports.

    PHOTOMESH_PORT_BASE takes precedence, then the stored block, then the first free block, so that
    several clones can run side by side.

    Raises:
        ValueError: PHOTOMESH_PORT_BASE is not a number from 1024 to 64535.
        OSError: no block is free.
    """
    wanted = environment.get(PORT_BASE_VARIABLE, "")
    known = read(state_dir)
    if wanted:
        if not wanted.isdigit():
            raise ValueError(f"{PORT_BASE_VARIABLE} must be a number, not {wanted!r}")
        state = State(int(wanted))
    elif known is not None:
        return known
    else:
        state = State(first_free_base())
    # Rejects a base that is out of range before it is stored.
    Ports.block(state.port_base)
    if state != known:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = state_dir / "state.json.new"
        draft.write_text(json.dumps(asdict(state)) + "\n")
        draft.replace(state_dir / "state.json")
    return state
