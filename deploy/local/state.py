"""Stores which block of ports a clone uses, in state.json."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from deploy.local import private
from deploy.local.ports import Ports, first_free_base

PORT_BASE_VARIABLE = "PHOTOMESH_PORT_BASE"


def read_ports(state_dir: Path) -> Ports | None:
    """Returns the ports that an earlier command stored, or None in a fresh clone."""
    try:
        return Ports.block(int(json.loads((state_dir / "state.json").read_text())["port_base"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def claim_ports(state_dir: Path, environment: Mapping[str, str] = os.environ) -> Ports:
    """Assigns the clone its permanent block of ports.

    PHOTOMESH_PORT_BASE takes precedence, then the stored block, then the first free block, so that
    several clones can run side by side.

    Raises:
        ValueError: PHOTOMESH_PORT_BASE is not a number from 1024 to 64535.
        OSError: no block is free.
    """
    wanted = environment.get(PORT_BASE_VARIABLE, "")
    stored = read_ports(state_dir)
    if not wanted and stored is not None:
        return stored
    if wanted and not wanted.isdigit():
        raise ValueError(
            f"{PORT_BASE_VARIABLE} must be a number from 1024 to 64535, not {wanted!r}"
        )
    base = int(wanted) if wanted else first_free_base()
    ports = Ports.block(base)
    if ports != stored:
        private.write(state_dir / "state.json", json.dumps({"port_base": base}) + "\n")
    return ports
