"""The mesh's own processes: one row each. Nothing else lists them.

Identities and certificates, database roles and schemas, ports, addresses of peers, readiness, and
start order derive from the rows. The requirements of a method or an event are in its contract.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Kind(StrEnum):
    """The type of a process."""

    SERVICE = "service"
    """Serves the methods of its contract."""
    WORKER = "worker"
    """Handles events or jobs; serves methods only to operators."""
    GATEWAY = "gateway"
    """Belongs to the gateway, and starts after the services."""


class Need(StrEnum):
    """A part that must be prepared before a process starts."""

    EVENTS = "provision-topics"
    STORAGE = "provision-storage"
    CACHE = "valkey"


class Key(Enum):
    """A key that a process receives: the variable that names its file, and the file."""

    ACCESS_TOKENS = ("PHOTOMESH_TOKEN_KEY_FILE", "token/key.pem")
    MEDIA_URLS = ("PHOTOMESH_CDN_KEY_FILE", "cdn.key")
    PAGE_TOKENS = ("PHOTOMESH_PAGE_KEY_FILE", "page.key")


@dataclass(frozen=True)
class MeshProcess:
    """One process of the mesh."""

    name: str
    """Its identity, as in its certificate."""
    kind: Kind
    port: int
    """Its gRPC port: an offset in the stack's block of ports."""
    memory_mib: int
    """The memory limit to run it with, children included: about twice what `make demo` takes."""
    module: str = ""
    """The module that `python -m` runs. Empty: services.<name>."""
    rest_port: int = 0
    """Its REST port, if it serves REST itself. 0: it does not."""
    rest_methods: tuple[str, ...] = ()
    """The gRPC paths of the methods that it also serves over REST."""
    schema: str = ""
    """The schema in PostgreSQL that it uses, and the role that owns it. Empty: no database."""
    needs: tuple[Need, ...] = ()
    """The parts that it uses, other than the database."""
    consumes: bool = False
    """Whether it consumes events. Its consumer group has the name of the process."""
    keys: tuple[Key, ...] = ()
    workers: tuple[str, ...] = ()
    """The workers, besides the consumer, that must be ready before the process is: their names in
    grpc.health.v1."""

    @property
    def program(self) -> str:
        """The module that `python -m` runs."""
        return self.module or f"services.{self.name}"

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The entries of the process table that must be ready before the process starts."""
        return (*self.needs, *(["provision-database"] if self.schema else []))

    @property
    def ready(self) -> tuple[str, ...]:
        """All workers that must be ready before the process is."""
        return (*(["consumer"] if self.consumes else []), *self.workers)


MESH = (
    MeshProcess(
        "account",
        Kind.SERVICE,
        port=101,
        memory_mib=320,
        schema="account",
        keys=(Key.ACCESS_TOKENS,),
    ),
    MeshProcess(
        "media",
        Kind.SERVICE,
        port=102,
        memory_mib=320,
        schema="media",
        needs=(Need.EVENTS, Need.STORAGE),
        keys=(Key.MEDIA_URLS,),
    ),
    MeshProcess(
        "media-worker",
        Kind.WORKER,
        port=103,
        # For two renderers (PHOTOMESH_RENDERERS); each additional one can take 320 MiB.
        memory_mib=1024,
        module="services.media.worker",
        schema="media",
        needs=(Need.EVENTS, Need.STORAGE),
        consumes=True,
    ),
    MeshProcess(
        "post",
        Kind.SERVICE,
        port=104,
        memory_mib=256,
        schema="post",
        needs=(Need.EVENTS, Need.CACHE),
        consumes=True,
        keys=(Key.MEDIA_URLS,),
    ),
    MeshProcess(
        "graph",
        Kind.SERVICE,
        port=105,
        memory_mib=256,
        schema="graph",
        needs=(Need.EVENTS, Need.CACHE),
        keys=(Key.PAGE_TOKENS,),
    ),
    MeshProcess(
        "feed",
        Kind.SERVICE,
        port=106,
        memory_mib=256,
        rest_port=109,
        rest_methods=("/photomesh.feed.v1.FeedService/GetFeed",),
        needs=(Need.CACHE,),
        keys=(Key.PAGE_TOKENS,),
    ),
    MeshProcess(
        "fanout",
        Kind.WORKER,
        port=107,
        memory_mib=256,
        schema="fanout",
        needs=(Need.EVENTS, Need.CACHE),
        consumes=True,
        workers=("pauses",),
    ),
    MeshProcess("reflection", Kind.GATEWAY, port=108, memory_mib=160, module="gateway.reflection"),
)
"""In display order."""

IDENTITIES = (*(process.name for process in MESH), "gateway", "operator")
"""The identities for which the mesh issues certificates."""

DATABASE_ROLES = tuple(dict.fromkeys(process.schema for process in MESH if process.schema))
"""Each role owns the schema of its name."""


def variable(peer: str) -> str:
    """Returns the variable with a process's address, such as PHOTOMESH_PEER_MEDIA_WORKER."""
    return f"PHOTOMESH_PEER_{peer.upper().replace('-', '_')}"
