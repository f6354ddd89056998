"""The names and addresses by which processes find databases, buckets, and each other."""

from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.processes import variable

ORIGINALS_BUCKET = "photomesh-originals"
MEDIA_BUCKET = "photomesh-media"
BROKER_BUCKET = "photomesh-broker"
REGION = "us-east-1"
DATABASE = "photomesh"


def superuser_url(ports: Ports, credentials: Credentials) -> str:
    password = credentials.database_superuser
    return f"postgresql://postgres:{password}@127.0.0.1:{ports.postgres}/postgres"


def role_url(role: str, ports: Ports, credentials: Credentials) -> str:
    password = credentials.database[role]
    return f"postgresql://{role}:{password}@127.0.0.1:{ports.postgres}/{DATABASE}"


def valkey_url(ports: Ports, *, cluster: bool) -> str:
    nodes = ports.valkey_nodes if cluster else ports.valkey_nodes[:1]
    return "redis://" + ",".join(f"127.0.0.1:{port}" for port, _ in nodes) + "/0"


def addresses(ports: Ports, cache: str) -> dict[str, str]:
    """Returns all addresses, for every process. Keys and passwords go only where they are used."""
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
