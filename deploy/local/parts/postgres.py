"""PostgreSQL."""

import signal

from deploy.local.addresses import superuser_url
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import ROOT, Layout, Process, python
from deploy.local.readiness import PostgresReady


def postgres(layout: Layout, ports: Ports, credentials: Credentials) -> Process:
    return Process(
        name="postgres",
        command=python("deploy.local.postgres", str(layout.data / "postgres"), str(ports.postgres)),
        ports={"PostgreSQL": ports.postgres},
        ready=PostgresReady(superuser_url(ports, credentials)),
        environment={"PGPASSWORD": credentials.database_superuser},
        folder=layout.data / "postgres",
        sources=(ROOT / "deploy/local/postgres.py",),
        # On SIGTERM, PostgreSQL waits until every client disconnects.
        stop_signal=signal.SIGINT,
    )
