"""The two Envoys: the gateway, and the CDN edge."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.local.addresses import MEDIA_BUCKET, REGION, addresses
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import DESCRIPTORS, ROOT, ConfigFile, Layout, Process, packaged, python
from deploy.local.readiness import HttpReady, Readiness


def gateway(layout: Layout, ports: Ports, cache: str) -> Process:
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


def edge(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
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
            str(packaged("envoy", "_bin/envoy")),
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
        ingress=True,
    )


def _envoy_config(name: str, settings: Mapping[str, str]) -> str:
    # In a separate process, because importing Envoy's types takes more than a second.
    printed = subprocess.run(
        python("gateway", name),
        env={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}", **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if printed.returncode:
        raise ValueError(printed.stderr.strip())
    return printed.stdout
