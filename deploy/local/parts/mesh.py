"""The mesh's own processes, from their rows in deploy/processes.py."""

from deploy.local.addresses import addresses, role_url
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import DESCRIPTORS, ROOT, Layout, Process, python
from deploy.local.readiness import GrpcReady
from deploy.processes import Kind, MeshProcess, Need


def mesh_process(
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
    if row.schema:
        environment["PHOTOMESH_DATABASE_URL"] = role_url(row.schema, ports, credentials)
    if Need.STORAGE in row.needs:
        environment["PHOTOMESH_S3_ACCESS_KEY"] = credentials.s3_media.access_key
        environment["PHOTOMESH_S3_SECRET_KEY"] = credentials.s3_media.secret_key
    if rest_port:
        environment["PHOTOMESH_REST_LISTEN"] = f"127.0.0.1:{rest_port}"
    return Process(
        name=row.name,
        command=python(row.program),
        depends_on=row.depends_on,
        ports={"gRPC": port} | ({"REST": rest_port} if rest_port else {}),
        ready=GrpcReady(port, row.name, layout.pki / "operator", row.ready),
        environment=environment,
        sources=(
            # The folder of the service, or of the gateway.
            ROOT.joinpath(*row.program.split(".")[: 2 if row.kind is not Kind.GATEWAY else 1]),
            ROOT / "services/chassis",
            ROOT / "services/domain",
            DESCRIPTORS,
            layout.pki / row.name,
            *key_files.values(),
        ),
    )
