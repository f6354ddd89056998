"""The tasks that prepare databases, buckets, and topics."""

import json

from deploy.local.addresses import (
    BROKER_BUCKET,
    DATABASE,
    MEDIA_BUCKET,
    ORIGINALS_BUCKET,
    REGION,
    superuser_url,
)
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import DESCRIPTORS, ROOT, Process, python
from deploy.processes import DATABASE_ROLES


def provisioning(ports: Ports, credentials: Credentials) -> tuple[Process, ...]:
    program = ROOT / "deploy/provision.py"
    storage = Process(
        name="provision-storage",
        command=python("deploy.provision", "storage"),
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
        command=python("deploy.provision", "database"),
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
        command=python("deploy.provision", "topics"),
        depends_on=("kafka",),
        environment={"PHOTOMESH_KAFKA_BOOTSTRAP": f"127.0.0.1:{ports.kafka}"},
        sources=(program, ROOT / "services/chassis/events/topics.py", DESCRIPTORS),
        prepares="s3",
    )
    return storage, database, topics
