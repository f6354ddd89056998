import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from botocore.exceptions import ClientError
from psycopg import sql

from deploy.database import Database, MigrationFailed, provision_database
from deploy.local.addresses import BROKER_BUCKET, MEDIA_BUCKET, ORIGINALS_BUCKET
from deploy.local.pki import KeyPair
from deploy.local.stack import Stack
from deploy.provision import Storage, TopicMismatch, Topics, provision_storage, provision_topics
from services.chassis.events.topics import Topic, all_topics

CHASSIS = {"0001.ids.sql": "CREATE SEQUENCE ids;"}
ACCOUNT = {
    "0001.people.sql": """
        CREATE TABLE people (id bigint PRIMARY KEY DEFAULT nextval('ids'), name citext);
        CREATE FUNCTION shout(name text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            IF name = '' THEN RETURN ''; END IF;
            RETURN upper(name) || '!';
        END;
        $$;
    """,
}


class Place:
    """A separate database, and its migrations."""

    def __init__(self, stack: Stack, name: str, services: Path) -> None:
        self.settings = Database(
            admin_database_url=stack.superuser_url,
            database=name,
            database_passwords=stack.credentials.database,
        )
        self.services = services
        self._stack = stack
        self.write("chassis/database", CHASSIS)
        self.write("account", ACCOUNT)

    def write(self, service: str, files: dict[str, str]) -> None:
        folder = self.services / service / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)

    def provision(self) -> None:
        provision_database(self.settings, services=self.services)

    def connect(self, role: str) -> psycopg.Connection:
        url = self._stack.database_url(role).rpartition("/")[0]
        return psycopg.connect(f"{url}/{self.settings.database}", autocommit=True)

    def applied(self, role: str) -> list[str]:
        with self.connect(role) as connection:
            rows = connection.execute("SELECT migration_id FROM schema_migrations ORDER BY 1")
            return [name for (name,) in rows]


@pytest.fixture
def place(infrastructure: Stack, tmp_path: Path) -> Iterator[Place]:
    name = f"provision_{threading.get_native_id()}"
    yield Place(infrastructure, name, tmp_path)
    with psycopg.connect(infrastructure.superuser_url, autocommit=True) as server:
        server.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


def test_each_service_has_a_schema_with_common_and_own_objects(place):
    place.provision()

    assert place.applied("account") == ["0001.ids", "0001.people"]
    assert place.applied("graph") == ["0001.ids"]
    with place.connect("account") as account:
        row = account.execute(
            "INSERT INTO people (name) VALUES ('Ada') RETURNING id, name = 'ADA', shout('ada')"
        ).fetchone()
    assert row == (1, True, "ADA!")


def test_provisioning_again_applies_only_new_migrations(place):
    place.provision()
    with place.connect("account") as account:
        account.execute("INSERT INTO people (name) VALUES ('Ada')")

    place.write("account", {"0002.age.sql": "ALTER TABLE people ADD age int;"})
    place.provision()
    place.provision()

    assert place.applied("account") == ["0001.ids", "0001.people", "0002.age"]
    with place.connect("account") as account:
        assert account.execute("SELECT name, age FROM people").fetchall() == [("Ada", None)]


def test_several_machines_can_provision_concurrently(place):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(place.provision) for _ in range(4)]:
            done.result()

    assert place.applied("account") == ["0001.ids", "0001.people"]


def test_no_service_can_read_the_schema_of_another(place):
    place.provision()

    with place.connect("graph") as graph:
        for statement in (
            "SELECT * FROM account.people",
            "CREATE TABLE account.mine ()",
            "CREATE TABLE public.mine ()",
            "CREATE SCHEMA mine",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                graph.execute(statement)
        with pytest.raises(psycopg.errors.UndefinedTable):
            graph.execute("SELECT * FROM people")


def test_a_failed_migration_is_rolled_back_and_named(place):
    place.provision()
    place.write("account", {"0002.bad.sql": "CREATE TABLE half (); SELECT 1 / 0;"})

    with pytest.raises(MigrationFailed, match=r"0002\.bad\.sql failed in schema account.*zero"):
        place.provision()

    assert place.applied("account") == ["0001.ids", "0001.people"]
    with place.connect("account") as account:
        assert account.execute("SELECT to_regclass('half')").fetchone() == (None,)

    place.write("account", {"0002.bad.sql": "CREATE TABLE half ();"})
    place.provision()
    assert place.applied("account") == ["0001.ids", "0001.people", "0002.bad"]


def test_a_migration_edited_after_it_was_applied_is_refused(place):
    place.provision()
    place.write("account", {"0001.people.sql": "CREATE TABLE persons ();"})

    with pytest.raises(MigrationFailed, match=r"0001\.people of schema account changed"):
        place.provision()


def test_a_lock_left_by_a_killed_migration_does_not_block_the_next(place):
    place.provision()
    with place.connect("account") as account:
        account.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 4711)")
    place.write("account", {"0002.age.sql": "ALTER TABLE people ADD age int;"})

    place.provision()

    assert "0002.age" in place.applied("account")


def test_a_migration_times_out_before_it_blocks_the_service(place, monkeypatch):
    monkeypatch.setattr("deploy.database._LOCK_TIMEOUT", "100ms")
    place.provision()
    place.write("account", {"0002.age.sql": "ALTER TABLE people ADD age int;"})

    with place.connect("account") as reader, reader.transaction():
        reader.execute("SELECT * FROM people")
        with pytest.raises(MigrationFailed, match="lock timeout"):
            place.provision()

    place.provision()
    assert "0002.age" in place.applied("account")


@pytest.fixture
def s3(infrastructure: Stack) -> Callable[[KeyPair], object]:
    return infrastructure.s3


def refused(call: Callable[..., object], **arguments: object) -> bool:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"] in ("AccessDenied", "403")


def test_buckets_refuse_unsigned_requests(infrastructure, s3):
    media = s3(infrastructure.credentials.s3_media)
    media.put_object(Bucket=MEDIA_BUCKET, Key="a/private", Body=b"x")
    with httpx.Client(base_url=infrastructure.s3_endpoint) as anonymous:
        answers = [
            anonymous.get(f"/{MEDIA_BUCKET}/a/private"),
            anonymous.get(f"/{MEDIA_BUCKET}"),
            anonymous.get("/"),
            anonymous.put(f"/{MEDIA_BUCKET}/a/public", content=b"x"),
            anonymous.put("/mine"),
            anonymous.delete(f"/{MEDIA_BUCKET}/a/private"),
        ]

    assert [answer.status_code for answer in answers] == [403] * 6


def test_each_storage_identity_can_access_only_its_buckets(infrastructure, s3):
    credentials = infrastructure.credentials
    media, edge, broker = (
        s3(keys) for keys in (credentials.s3_media, credentials.s3_edge, credentials.s3_broker)
    )
    media.put_object(Bucket=ORIGINALS_BUCKET, Key="a/original", Body=b"with GPS")
    media.put_object(Bucket=MEDIA_BUCKET, Key="a/variant", Body=b"without")

    assert edge.get_object(Bucket=MEDIA_BUCKET, Key="a/variant")["Body"].read() == b"without"
    assert refused(edge.get_object, Bucket=ORIGINALS_BUCKET, Key="a/original")
    assert refused(edge.put_object, Bucket=MEDIA_BUCKET, Key="a/variant", Body=b"forged")
    assert refused(edge.list_objects_v2, Bucket=MEDIA_BUCKET)
    assert refused(broker.get_object, Bucket=MEDIA_BUCKET, Key="a/variant")
    assert refused(media.list_objects_v2, Bucket=BROKER_BUCKET)
    assert refused(media.create_bucket, Bucket="photomesh-another")


def test_storage_with_objects_can_be_provisioned_again(infrastructure, s3):
    media = s3(infrastructure.credentials.s3_media)
    media.put_object(Bucket=ORIGINALS_BUCKET, Key="a/kept", Body=b"x")
    keys = infrastructure.credentials.s3_provision

    provision_storage(
        Storage(
            s3_endpoint=infrastructure.s3_endpoint,
            s3_access_key=keys.access_key,
            s3_secret_key=keys.secret_key,
            broker_bucket=BROKER_BUCKET,
        )
    )

    assert media.get_object(Bucket=ORIGINALS_BUCKET, Key="a/kept")["Body"].read() == b"x"


def test_a_storage_without_cold_tier_still_removes_abandoned_parts(infrastructure, s3):
    provisioner = s3(infrastructure.credentials.s3_provision)

    rules = provisioner.get_bucket_lifecycle_configuration(Bucket=ORIGINALS_BUCKET)["Rules"]

    [rule] = rules
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}


def test_a_browser_may_post_originals(infrastructure):
    answer = httpx.options(
        f"{infrastructure.s3_endpoint}/{ORIGINALS_BUCKET}",
        headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
    )

    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"] or (
        answer.headers["access-control-allow-methods"] == "*"
    )


def test_topics_can_be_provisioned_again(infrastructure):
    settings = Topics(kafka_bootstrap=infrastructure.kafka_bootstrap)

    provision_topics(settings, all_topics())
    provision_topics(settings, (*all_topics(), Topic("provision_new", partitions=3)))


def test_a_topic_with_another_number_of_partitions_is_refused_not_changed(infrastructure):
    settings = Topics(kafka_bootstrap=infrastructure.kafka_bootstrap)
    provision_topics(settings, [Topic("provision_fixed", partitions=2)])

    with pytest.raises(TopicMismatch, match="provision_fixed has 2 partitions, not 4"):
        provision_topics(settings, [Topic("provision_fixed", partitions=4)])
