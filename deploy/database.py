"""Creates the services' database, and migrates the schema of each service."""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri
from yoyo.migrations import Migration

log = logging.getLogger(__name__)

SERVICES = Path(__file__).parents[1] / "services"

# Identifies Photomesh's migrations among PostgreSQL's advisory locks.
_MIGRATION_LOCK = 0x70686F746F
_MIGRATION_WAIT_SECONDS = 300

# A migration that waits long for a lock would block every query behind it; a migration that runs
# long must be split into batches.
_LOCK_TIMEOUT = "5s"
_STATEMENT_TIMEOUT = "60s"

# pg_trgm: search by parts of a name. pg_stat_statements: the cost of each query.
_EXTENSIONS = ("pg_trgm", "citext", "btree_gin", "pg_stat_statements")


class Database(BaseSettings):
    """The database and roles to create, and the superuser's URL."""

    model_config = SettingsConfigDict(env_prefix="PHOTOMESH_", frozen=True, extra="ignore")

    admin_database_url: SecretStr
    """Can create roles and databases."""
    database: str = "photomesh"
    database_passwords: dict[str, SecretStr]
    """Password by role; each role owns the schema of its name."""


class MigrationFailed(Exception):
    """A schema could not be migrated; the text names the schema and the reason."""


def provision_database(settings: Database, *, services: Path = SERVICES) -> None:
    """Creates the database, a role and a schema for each service, and migrates each schema.

    Args:
        settings: the database and the roles.
        services: the folder whose `chassis/database/migrations` applies to every schema, followed
            by the schema's own `<service>/migrations`. Either can be missing.

    Raises:
        MigrationFailed: a migration failed, or another session holds the migration lock for more
            than 5 minutes.
    """
    admin_url = settings.admin_database_url.get_secret_value()
    passwords = {
        role: password.get_secret_value() for role, password in settings.database_passwords.items()
    }
    with psycopg.connect(admin_url, autocommit=True) as admin, _migration_lock(admin):
        _make_roles(admin, passwords)
        _make_database(admin, settings.database, passwords)
        own_url = _at_database(admin_url, settings.database)
        with psycopg.connect(own_url, autocommit=True) as own:
            _make_schemas(own, passwords)
        for role, password in passwords.items():
            url = _as_role(own_url, role, password)
            # The chassis first, because a service's tables can use their id functions.
            for owner in ("chassis/database", role):
                _migrate(url, role, services / owner / "migrations")


@contextmanager
def _migration_lock(admin: psycopg.Connection) -> Iterator[None]:
    # Polled, because a session that waits for the lock would hold a snapshot, which blocks CREATE
    # INDEX CONCURRENTLY in the session that migrates.
    deadline = time.monotonic() + _MIGRATION_WAIT_SECONDS
    while True:
        row = admin.execute("SELECT pg_try_advisory_lock(%s)", [_MIGRATION_LOCK]).fetchone()
        if row and row[0]:
            break
        if time.monotonic() > deadline:
            raise MigrationFailed(
                f"another session has held the migration lock for {_MIGRATION_WAIT_SECONDS} s; try "
                "again when it has finished"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        admin.execute("SELECT pg_advisory_unlock(%s)", [_MIGRATION_LOCK])


def _make_roles(admin: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    known = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles")}
    for role, password in passwords.items():
        verb = "ALTER" if role in known else "CREATE"
        # The server logs statements that fail or are slow, and pg_stat_statements stores all, so no
        # statement may contain the password itself.
        verifier = admin.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
        admin.execute(
            sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                sql.SQL(verb), sql.Identifier(role), sql.Literal(verifier)
            )
        )
        # The search path contains the role's own schema and the extensions only, so that a name
        # cannot resolve to another service's schema by accident.
        admin.execute(
            sql.SQL("ALTER ROLE {} SET search_path = {}, extensions").format(
                sql.Identifier(role), sql.Identifier(role)
            )
        )
        if role not in known:
            log.info("role.created name=%s", role)


def _make_database(admin: psycopg.Connection, database: str, passwords: Mapping[str, str]) -> None:
    name = sql.Identifier(database)
    found = admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
    if not found:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        log.info("database.created name=%s", database)
    admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    for role in passwords:
        grant = sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}")
        admin.execute(grant.format(name, sql.Identifier(role)))


def _make_schemas(own: psycopg.Connection, passwords: Mapping[str, str]) -> None:
    own.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    own.execute("CREATE SCHEMA IF NOT EXISTS extensions")
    own.execute("GRANT USAGE ON SCHEMA extensions TO PUBLIC")
    for extension in _EXTENSIONS:
        install = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA extensions")
        own.execute(install.format(sql.Identifier(extension)))
    for role in passwords:
        schema = sql.Identifier(role)
        own.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(schema, schema)
        )
        own.execute(sql.SQL("REVOKE ALL ON SCHEMA {} FROM PUBLIC").format(schema))


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """Applies and records a migration in one transaction, and stores its digest.

    yoyo records it in a second transaction: a process killed between the two would apply the
    migration again. yoyo also does not detect a migration that was edited after it was applied.
    """

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:
        migration.load()
        if not migration.use_transactions:
            super().apply_one(migration, force, mark)
            self._record_digest(migration)
            return
        with self.transaction():
            migration.process_steps(self, "apply", force=force)
            self.mark_one(migration, log=False)
            self._record_digest(migration)

    def edited(self, migrations: Iterable[Migration]) -> list[str]:
        """Returns the migrations that were edited after they were applied."""
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_texts (migration_id text PRIMARY KEY, sha256 text)"
        )
        applied = dict(self.connection.execute("SELECT migration_id, sha256 FROM schema_texts"))
        return [
            migration.id
            for migration in migrations
            if applied.get(migration.id, _digest(migration)) != _digest(migration)
        ]

    def _record_digest(self, migration: Migration) -> None:
        self.connection.execute(
            "INSERT INTO schema_texts VALUES (%s, %s)", [migration.id, _digest(migration)]
        )


def _digest(migration: Migration) -> str:
    return hashlib.sha256(Path(migration.path).read_bytes()).hexdigest()


def _migrate(url: str, role: str, folder: Path) -> None:
    if not folder.is_dir():
        return
    timeouts = f"-c lock_timeout={_LOCK_TIMEOUT} -c statement_timeout={_STATEMENT_TIMEOUT}"
    uri = parse_uri(url)
    uri = uri._replace(args={**uri.args, "options": timeouts})
    with _Backend(uri, "schema_migrations") as backend:
        backend.create_lock_table()
        # This session holds the advisory lock, so yoyo's lock can only be that of a killed process.
        backend.break_lock()
        migrations = read_migrations(str(folder))
        if edited := backend.edited(migrations):
            raise MigrationFailed(
                f"{', '.join(edited)} of schema {role} changed after it was applied: make the "
                "change in a new migration, or delete all local data with make clean"
            )
        for migration in backend.to_apply(migrations):
            try:
                backend.apply_one(migration)
            except psycopg.Error as error:
                raise MigrationFailed(
                    f"migration {migration.path} failed in schema {role}: {error}"
                ) from error
            log.info("migration.applied id=%s schema=%s", migration.id, role)


def _at_database(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(database)}"))


def _as_role(url: str, role: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(role)}:{quote(password, safe='')}@{host}"))
