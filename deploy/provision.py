"""Prepares the parts for the services: storage, database, topics.

    python -m deploy.provision storage|database|topics ...

Every step is idempotent and can run on several machines at once. Settings come from the
environment, so the same program prepares a laptop and a production cluster.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.config import load

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import LifecycleRuleTypeDef

log = logging.getLogger("provision")

_MILLISECOND = timedelta(milliseconds=1)
_KAFKA_SECONDS = 15.0


class Storage(BaseSettings):
    """The buckets to create, and the identity that creates them."""

    model_config = SettingsConfigDict(env_prefix="PHOTOMESH_", frozen=True, extra="ignore")

    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"
    originals_bucket: str = "photomesh-originals"
    media_bucket: str = "photomesh-media"
    broker_bucket: str = ""
    """The bucket of the local broker, which stores its messages in S3. Empty: none."""
    cors_origins: tuple[str, ...] = ("*",)
    """The origins whose web clients can send presigned uploads."""


class Topics(BaseSettings):
    """The broker on which to create topics."""

    model_config = SettingsConfigDict(env_prefix="PHOTOMESH_", frozen=True, extra="ignore")

    kafka_bootstrap: str


class Topic(Protocol):
    """A topic as described by `services.chassis.events.topics`."""

    @property
    def name(self) -> str: ...
    @property
    def partitions(self) -> int: ...
    @property
    def retention(self) -> timedelta: ...


class TopicMismatch(Exception):
    """A topic exists with different settings that cannot be changed safely."""


def provision_storage(settings: Storage) -> None:
    """Creates the private buckets, and allows browsers to POST originals.

    Raises:
        botocore.exceptions.ClientError: S3 rejected a request.
    """
    import boto3
    from botocore.config import Config

    s3 = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        region_name=settings.s3_region,
        config=Config(retries={"max_attempts": 5}, connect_timeout=5, read_timeout=15),
    )
    buckets = [settings.originals_bucket, settings.media_bucket]
    if settings.broker_bucket:
        buckets.append(settings.broker_bucket)
    for bucket in buckets:
        try:
            # us-east-1 is the only region that must not be specified.
            if settings.s3_region == "us-east-1":
                s3.create_bucket(Bucket=bucket)
            else:
                s3.create_bucket(
                    Bucket=bucket,
                    CreateBucketConfiguration={"LocationConstraint": settings.s3_region},  # type: ignore[typeddict-item]
                )
        except s3.exceptions.BucketAlreadyOwnedByYou:
            continue
        log.info("bucket.created name=%s", bucket)
    # Removes incomplete multipart uploads that crashes and clients leave behind; the media
    # service's sweeper removes only those that it knows.
    abandoned_parts: LifecycleRuleTypeDef = {
        "ID": "abandoned-parts",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    # Originals are read when they are processed, and when a new variant is generated for all of
    # them. Both storage classes still respond at once.
    rarely_read: LifecycleRuleTypeDef = {
        "ID": "rarely-read",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "Transitions": [
            {"Days": 30, "StorageClass": "STANDARD_IA"},
            {"Days": 180, "StorageClass": "GLACIER_IR"},
        ],
    }
    try:
        s3.put_bucket_lifecycle_configuration(
            Bucket=settings.originals_bucket,
            LifecycleConfiguration={"Rules": [abandoned_parts, rarely_read]},
        )
    except s3.exceptions.ClientError as error:
        # SeaweedFS has one storage class, and rejects the whole configuration.
        if error.response["Error"]["Code"] != "NotImplemented":
            raise
        log.info("storage_classes.unsupported")
        s3.put_bucket_lifecycle_configuration(
            Bucket=settings.originals_bucket,
            LifecycleConfiguration={"Rules": [abandoned_parts]},
        )
    s3.put_bucket_cors(
        Bucket=settings.originals_bucket,
        CORSConfiguration={
            "CORSRules": [
                {
                    "AllowedOrigins": list(settings.cors_origins),
                    "AllowedMethods": ["POST", "PUT"],
                    "AllowedHeaders": ["*"],
                    # A client must name the parts of a multipart upload by their ETags.
                    "ExposeHeaders": ["ETag"],
                    "MaxAgeSeconds": 3600,
                }
            ]
        },
    )


def provision_topics(settings: Topics, topics: Sequence[Topic]) -> None:
    """Creates the topics that do not exist.

    Raises:
        TopicMismatch: a topic exists with a different number of partitions. Changing the number
            would route later events of a key to another partition, out of order.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

    with AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 3}) as admin:
        existing = set(admin.list_topics(timeout=_KAFKA_SECONDS).topics)
        for topic in topics:
            if topic.name in existing:
                continue
            # -1: the cluster's default number of replicas.
            new = NewTopic(
                topic.name,
                topic.partitions,
                -1,
                config={"retention.ms": str(topic.retention // _MILLISECOND)},
            )
            try:
                admin.create_topics([new], request_timeout=_KAFKA_SECONDS)[topic.name].result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                continue
            log.info("topic.created name=%s partitions=%d", topic.name, topic.partitions)
        found = admin.list_topics(timeout=_KAFKA_SECONDS).topics
    partitions = {name: len(metadata.partitions) for name, metadata in found.items()}
    wrong = [
        f"{topic.name} has {partitions.get(topic.name, 0)} partitions, not {topic.partitions}"
        for topic in topics
        if partitions.get(topic.name) != topic.partitions
    ]
    if wrong:
        raise TopicMismatch("; ".join(wrong))


# Each step imports its clients only when it runs, to keep `make up` fast.


def _storage() -> None:
    provision_storage(load(Storage))


def _database() -> None:
    from deploy.database import Database, MigrationFailed, provision_database

    try:
        provision_database(load(Database))
    except MigrationFailed as error:
        raise SystemExit(f"provision database: {error}") from error


def _topics() -> None:
    from services.chassis.events.topics import all_topics

    try:
        provision_topics(load(Topics), all_topics())
    except TopicMismatch as error:
        raise SystemExit(f"provision topics: {error}") from error


_STEPS: Mapping[str, Callable[[], None]] = {
    "storage": _storage,
    "database": _database,
    "topics": _topics,
}


def main(names: Iterable[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("yoyo.migrations", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    steps = list(names)
    unknown = set(steps) - set(_STEPS)
    if not steps or unknown:
        raise SystemExit(f"Usage: python -m deploy.provision {' '.join(f'[{s}]' for s in _STEPS)}")
    for step in steps:
        _STEPS[step]()


if __name__ == "__main__":
    main(sys.argv[1:])
