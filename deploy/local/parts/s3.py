"""S3: SeaweedFS."""

import json
import sysconfig
from pathlib import Path

from deploy.local.addresses import BROKER_BUCKET, MEDIA_BUCKET, ORIGINALS_BUCKET
from deploy.local.pki import Credentials, KeyPair
from deploy.local.ports import Ports
from deploy.local.process import ConfigFile, Layout, Process
from deploy.local.readiness import HttpReady


def s3(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
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
        stale_files=tuple(
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
