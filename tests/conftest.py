"""The real parts that tests talk to. Each starts once per run, on free ports.

Every test has its own database, cloned from a migrated template, or its own users. With
pytest-xdist, each worker starts its own parts.
"""

import itertools
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from deploy.database import Database, provision_database
from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from services.chassis.cache.client import Cache, connect
from services.chassis.config import CacheSettings, DatabaseSettings, KafkaSettings
from tests.eventually import PATIENCE_SECONDS
from tests.guard import RUN, processes_of
from tests.mesh.people import Person
from tests.secrets import USED, watch

_TEMPLATE = "template_photomesh"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many seconds the tests of each folder took, including fixtures."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            folder = report.nodeid.partition("::")[0].rpartition("/")[0]
            seconds[folder] += report.duration
            # A test has up to three reports; only this one always exists.
            tests[folder] += report.when == "teardown"
    if seconds:
        terminalreporter.section("seconds by folder")
        terminalreporter.write_line("seconds  tests  folder")
        for folder, spent in seconds.most_common():
            terminalreporter.write_line(f"{spent:7.1f}  {tests[folder]:5}  {folder}")


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the run if any of its files holds a password, token or key that a test used."""
    with watch():
        yield
    found = USED.search(tmp_path_factory.getbasetemp())
    assert not found, "\n".join(map(str, found))


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_run() -> Iterator[None]:
    """Fails if a process outlives the tests; a guard ends them if this process dies first."""
    run = secrets.token_hex(8)
    # Processes that tests start inherit it. Those of a stack do not, but have its guard.
    os.environ[RUN] = run
    with subprocess.Popen(
        [sys.executable, "-m", "tests.guard", run],
        stdin=subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    ):
        yield
        left = processes_of(run)
        del os.environ[RUN]
        # When its input ends, the guard kills the remaining processes.
    assert not left, f"tests left processes running: {left}"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The process table on free ports; nothing runs yet."""
    with Stack(
        tmp_path_factory.mktemp("stack"),
        ports=free_ports(),
        ephemeral=True,
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def infrastructure(stack: Stack) -> Stack:
    """PostgreSQL, Valkey, S3 and the broker, provisioned."""
    stack.up(["infrastructure", "provision"], timeout=PATIENCE_SECONDS)
    return stack


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Valkey as a cluster of three masters with a replica each, and nothing else."""
    with Stack(
        tmp_path_factory.mktemp("cluster"),
        ports=free_ports(),
        ephemeral=True,
        cache_cluster=True,
    ) as stack:
        stack.up(["valkey"], timeout=PATIENCE_SECONDS)
        yield stack


@pytest.fixture(scope="session", params=["server", "cluster"])
def cache_url(request: pytest.FixtureRequest) -> str:
    """The URL of a Valkey. Tests that use it run with one server and again with a cluster."""
    if request.param == "cluster":
        return request.getfixturevalue("valkey_cluster").valkey_url
    stack: Stack = request.getfixturevalue("stack")
    stack.up(["valkey"])
    return stack.valkey_url


@pytest.fixture(scope="session")
async def cache(cache_url: str) -> AsyncIterator[Cache]:
    """A client of that Valkey."""
    settings = CacheSettings(valkey_url=cache_url, valkey_timeout_seconds=PATIENCE_SECONDS)
    async with connect(settings) as cache:
        yield cache


@pytest.fixture(scope="session")
def mesh(infrastructure: Stack) -> Stack:
    """The whole mesh: infrastructure, services, gateway and edge."""
    infrastructure.up(timeout=PATIENCE_SECONDS)
    return infrastructure


@pytest.fixture(scope="session")
def database_template(infrastructure: Stack) -> str:
    """The name of a migrated database without connections, so that it can be cloned."""
    provision_database(
        Database(
            admin_database_url=infrastructure.superuser_url,
            database=_TEMPLATE,
            database_passwords=infrastructure.credentials.database,
        )
    )
    return _TEMPLATE


@contextmanager
def _cloned(stack: Stack, template: str) -> Iterator[Callable[[str], DatabaseSettings]]:
    """Yields a function that returns the settings of a service's schema in a new database."""
    name = f"test_{next(_numbers)}"
    database = sql.Identifier(name)
    with psycopg.connect(stack.superuser_url, autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, sql.Identifier(template))
        )
        for role in map(sql.Identifier, stack.credentials.database):
            # Cloning a database does not copy the per-database settings of roles.
            server.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path = {}, extensions").format(
                    role, database, role
                )
            )
    yield lambda role: DatabaseSettings(
        database_url=stack.database_url(role).rpartition("/")[0] + f"/{name}"
    )
    # A new connection, because a test may have killed the server meanwhile.
    with psycopg.connect(stack.superuser_url, autocommit=True) as server:
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


@pytest.fixture
def database_of(
    infrastructure: Stack, database_template: str
) -> Iterator[Callable[[str], DatabaseSettings]]:
    """Returns the settings of a service's schema in a database that only this test uses."""
    with _cloned(infrastructure, database_template) as settings_of:
        yield settings_of


@pytest.fixture(scope="package")
def shared_database_of(
    infrastructure: Stack, database_template: str
) -> Iterator[Callable[[str], DatabaseSettings]]:
    """The same, shared by the tests of a package. They empty the tables, which is faster."""
    with _cloned(infrastructure, database_template) as settings_of:
        yield settings_of


_numbers = itertools.count(1)


@pytest.fixture
def kafka(infrastructure: Stack) -> KafkaSettings:
    """The address of the broker."""
    return KafkaSettings(kafka_bootstrap=infrastructure.kafka_bootstrap)


@pytest.fixture
async def http(mesh: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway's REST API."""
    base = f"http://127.0.0.1:{mesh.ports.gateway_http}"
    async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def person(http: httpx.AsyncClient) -> Callable[[], Person]:
    """Makes users who have not signed up yet."""
    return lambda: Person(http)
