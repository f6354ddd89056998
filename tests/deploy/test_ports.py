import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ports import Ports, first_free_base, free_ports, holder, is_free
from deploy.local.process import ROOT


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_block_contains_every_port_once():
    ports = Ports.block(18_000).all()

    assert len(set(ports)) == len(ports)
    assert all(18_000 <= port < 19_000 for port in ports)


@pytest.mark.parametrize("base", [0, 80, 65_000])
def test_a_block_outside_the_range_of_user_ports_is_refused(base):
    with pytest.raises(ValueError, match=str(base)):
        Ports.block(base)


def test_the_first_free_block_is_free():
    assert all(map(is_free, Ports.block(first_free_base()).all()))


def test_free_ports_differ_and_cannot_be_taken_by_outgoing_connections():
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    ports = free_ports().all()

    assert len(set(ports)) == len(ports)
    assert all(is_free(port) for port in ports)
    assert max(ports) < max(ephemeral, 18_000)


_DRAWER = """
import json, sys
from deploy.local.ports import free_ports

kept = [free_ports() for _ in range(8)]
print(json.dumps([port for ports in kept for port in ports.all()]), flush=True)
sys.stdin.read()
"""


def test_concurrent_processes_get_different_ports_until_they_end():
    command = (sys.executable, "-c", _DRAWER)
    drawn = []
    # Six rounds need more runs of ports than exist, so killed processes must release theirs.
    for _ in range(6):
        drawers = [
            subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        try:
            drawn.append([json.loads(drawer.stdout.readline()) for drawer in drawers])
        finally:
            for drawer in drawers:
                drawer.kill()
                drawer.communicate()

    for round_ in drawn:
        ports = [port for one in round_ for port in one]
        assert len(set(ports)) == len(ports) == 3 * 8 * len(free_ports().all())


def test_the_holder_of_a_port_is_named(listener):
    port = listener.getsockname()[1]

    assert not is_free(port)
    assert f"pid {os.getpid()} (" in holder(port)
    assert "python" in holder(port)
