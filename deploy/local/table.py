"""The process table: all processes of the mesh on one machine.

Development, tests, and load tests all start the mesh from this table.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from deploy.local.addresses import valkey_url
from deploy.local.parts.envoys import edge, gateway
from deploy.local.parts.kafka import kafka
from deploy.local.parts.mesh import mesh_process
from deploy.local.parts.postgres import postgres
from deploy.local.parts.provisioning import provisioning
from deploy.local.parts.s3 import s3
from deploy.local.parts.valkey import valkey, valkey_cluster
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import ROOT, Layout, Process, python
from deploy.local.readiness import Running
from deploy.processes import MESH, Kind

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "infrastructure": ("postgres", "valkey", "s3", "kafka"),
        "provision": ("provision-storage", "provision-database", "provision-topics"),
        "services": tuple(row.name for row in MESH if row.kind is not Kind.GATEWAY),
    }
)
"""Short names for several processes."""


def processes(
    layout: Layout, ports: Ports, credentials: Credentials, *, cache_cluster: bool = False
) -> tuple[Process, ...]:
    """Returns the table in display order.

    With `cache_cluster`, Valkey is three masters with a replica each; otherwise one server.
    """
    cache = valkey_url(ports, cluster=cache_cluster)
    rotation = _log_rotation(layout)
    writers = (
        postgres(layout, ports, credentials),
        *(valkey_cluster(layout, ports) if cache_cluster else (valkey(layout, ports),)),
        s3(layout, ports, credentials),
        kafka(ports, credentials),
        *provisioning(ports, credentials),
        *(mesh_process(row, layout, ports, credentials, cache) for row in MESH),
        gateway(layout, ports, cache),
        edge(layout, ports, credentials),
    )
    return (
        *(replace(writer, depends_on=(rotation.name, *writer.depends_on)) for writer in writers),
        rotation,
    )


def _log_rotation(layout: Layout) -> Process:
    return Process(
        name="log-rotation",
        command=python("deploy.local.rotation", str(layout.log)),
        ready=Running(),
        sources=(ROOT / "deploy/local/rotation.py",),
    )
