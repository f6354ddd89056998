"""Objects are accessible only through S3, with a signature, and by no other SeaweedFS port."""

import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from deploy.local.addresses import ORIGINALS_BUCKET
from deploy.local.stack import Stack
from deploy.processes import IDENTITIES

_METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "POST", "DELETE")
# Some of SeaweedFS's ports serve HTTP and some gRPC. The tests send every request to every port.
_PATHS = (
    "/buckets/{bucket}/{key}",
    "/buckets/{bucket}/?recursive=true",
    "/?proxyChunkId={fid}",
    "/{fid}",
    "/dir/lookup?fileId={fid}&read=yes",
    "/dir/assign",
    "/dir/status",
    "/vol/status",
    "/col/delete?collection={bucket}",
    "/submit",
    "/status",
    "/",
)


@dataclass(frozen=True)
class Original:
    key: str
    content: bytes
    # SeaweedFS's file id: volume, number and cookie.
    fid: str

    def paths(self) -> list[str]:
        return [path.format(bucket=ORIGINALS_BUCKET, key=self.key, fid=self.fid) for path in _PATHS]


@pytest.fixture(scope="module")
def original(infrastructure: Stack) -> Original:
    key, content = "storage-ports/original.jpg", os.urandom(50_000)
    infrastructure.s3().put_object(Bucket=ORIGINALS_BUCKET, Key=key, Body=content)
    return Original(key, content, stored_as(content, infrastructure.layout.data / "s3"))


@pytest.fixture(scope="module")
def inner_ports(infrastructure: Stack) -> dict[str, int]:
    """Every port of SeaweedFS except S3 itself, by purpose."""
    ports = dict(infrastructure.processes["s3"].ports)
    assert ports.pop("S3") == infrastructure.ports.s3
    assert len(ports) > 5
    return ports


def stored_as(content: bytes, folder: Path) -> str:
    """Returns the file id of an object, read from the volumes' files.

    In these files, a needle is cookie, number, two sizes, then data.
    """
    for volume in folder.glob("*.dat"):
        written = volume.read_bytes()
        at = written.find(content)
        if at >= 0:
            cookie, number = written[at - 20 : at - 16], written[at - 16 : at - 8]
            return f"{volume.stem.rpartition('_')[2]},{number.hex().lstrip('0')}{cookie.hex()}"
    raise AssertionError("no volume holds the object")


def mesh_contexts(stack: Stack) -> Iterator[ssl.SSLContext]:
    """Yields TLS contexts that accept any server: with no certificate and each of the mesh."""
    for identity in (None, "public", *IDENTITIES):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if identity:
            folder = stack.layout.pki / identity
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        yield context


def test_a_request_without_the_storages_certificate_gets_no_answer_that_a_web_page_may_read(
    infrastructure, original, inner_ports
):
    wrong = []
    for scheme in ("http", "https"):
        with httpx.Client(verify=False, timeout=20) as client:
            for purpose, port in inner_ports.items():
                for method in _METHODS:
                    for path in original.paths():
                        try:
                            answer = client.request(
                                method,
                                f"{scheme}://127.0.0.1:{port}{path}",
                                headers={"Origin": "https://evil.example"},
                                content=b"overwritten" if method in ("PUT", "POST") else None,
                            )
                        except httpx.TransportError:
                            continue
                        if (
                            answer.status_code < 400
                            or original.content in answer.content
                            or any(name.startswith("access-control") for name in answer.headers)
                        ):
                            wrong.append((purpose, method, path, answer.status_code))

    assert wrong == []
    stored = infrastructure.s3().get_object(Bucket=ORIGINALS_BUCKET, Key=original.key)
    assert stored["Body"].read() == original.content


def test_no_certificate_of_the_mesh_opens_a_port_of_the_storage(
    infrastructure, original, inner_ports
):
    request = f"GET /{original.fid} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    contexts = list(mesh_contexts(infrastructure))
    opened = []
    for purpose, port in inner_ports.items():
        for context in contexts:
            # With TLS 1.3, the client gets the refusal when it reads.
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                try:
                    with context.wrap_socket(connection) as tls:
                        tls.sendall(request)
                        if tls.recv(1):
                            opened.append(purpose)
                except OSError:
                    continue

    assert opened == []


def test_grpc_needs_the_storages_certificate(infrastructure, original, inner_ports):
    delete = b"".join(
        bytes([field << 3 | 2, len(text)]) + text.encode()
        for field, text in enumerate(
            (f"/buckets/{ORIGINALS_BUCKET}/storage-ports", "original.jpg"), start=1
        )
    )
    folder = infrastructure.layout.pki / "storage"
    refused = {}
    for purpose, port in inner_ports.items():
        if "gRPC" in purpose:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                refused[purpose] = call(channel, "/filer_pb.SeaweedFiler/DeleteEntry", delete)

    assert refused == dict.fromkeys(refused, grpc.StatusCode.UNAVAILABLE)
    assert "SeaweedFS filer gRPC" in refused
    stored = infrastructure.s3().get_object(Bucket=ORIGINALS_BUCKET, Key=original.key)
    assert stored["Body"].read() == original.content

    # With the certificate, the same calls are accepted.
    own = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    for purpose in refused:
        with grpc.secure_channel(f"127.0.0.1:{inner_ports[purpose]}", own) as channel:
            assert call(channel, "/no.such/Method", b"") is grpc.StatusCode.UNIMPLEMENTED


def call(channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    try:
        channel.unary_unary(method)(request, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_s3_refuses_what_is_not_signed(infrastructure, original):
    url = f"{infrastructure.s3_endpoint}/{ORIGINALS_BUCKET}"
    with httpx.Client(headers={"Origin": "https://evil.example"}, timeout=20) as client:
        answers = {
            (method, path): client.request(method, url + path, content=b"overwritten").status_code
            for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
            for path in ("", f"/{original.key}", f"/{original.key}?tagging", "?list-type=2")
        }

    assert {status for status in answers.values() if status < 400} == set()
    stored = infrastructure.s3().get_object(Bucket=ORIGINALS_BUCKET, Key=original.key)
    assert stored["Body"].read() == original.content
