"""Settings from environment variables, which are named `PHOTOMESH_<FIELD>`.

Each service's `config.py` combines these groups into one frozen class.
"""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import (
    AfterValidator,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.cache.valkey import parse_url


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError("must be host:port")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""A host and a port, such as `127.0.0.1:18101`."""


def _addresses(value: str) -> str:
    addresses = value.split(",")
    for address in addresses:
        host = _address(address).rpartition(":")[0]
        if len(addresses) > 1:
            IPv4Address(host)
    return value


Addresses = Annotated[str, AfterValidator(_addresses)]
"""The replicas of a service: a name and a port, such as `thing.mesh:443`, or the addresses of all
replicas, such as `10.0.0.1:443,10.0.0.2:443` (IPv4 only)."""


class Group(BaseSettings):
    """The base class of all groups.

    It alone sets `model_config`, because a class with several bases uses that of the last base.
    """

    model_config = SettingsConfigDict(env_prefix="PHOTOMESH_", frozen=True, extra="ignore")


class MeshSettings(Group):
    """Settings of every process in the mesh."""

    listen: Address
    """The address of the gRPC server."""
    tls_dir: Path
    """The folder of this process's identity: `ca.pem`, `cert.pem` and `key.pem`."""
    log_level: str = "INFO"
    drain_seconds: float = 10.0
    """How long calls in progress may continue after SIGTERM."""


class DatabaseSettings(Group):
    """The connection to a service's own PostgreSQL schema."""

    database_url: SecretStr
    database_pool_size: int = 8
    database_timeout_seconds: float = 3.0
    """The timeout for getting a connection, and for each statement."""


class CacheSettings(Group):
    """The connection to Valkey or Redis."""

    valkey_url: str
    """`redis[s]://[[user]:password@]host:port[,host:port...][/database]`.

    One address means a single server. Several addresses mean a cluster, which is discovered through
    any of them. For a cluster that has only one address, repeat that address.
    """
    valkey_timeout_seconds: float = 0.5
    """The timeout for connecting to a server, and for each response."""

    @field_validator("valkey_url")
    @classmethod
    def _can_be_parsed(cls, value: str) -> str:
        parse_url(value)
        return value


class KafkaSettings(Group):
    """The connection to Kafka."""

    kafka_bootstrap: str
    """Comma-separated host:port pairs."""
    kafka_session_seconds: float = 6.0
    """The session timeout, after which the broker detects a dead consumer. Apache Kafka's minimum
    is 6."""


Settings = TypeVar("Settings", bound=BaseSettings)


def load(settings: type[Settings]) -> Settings:
    """Reads settings from the environment.

    Raises:
        SystemExit: variables are missing or invalid; the message names all of them.
    """
    try:
        return settings()
    except ValidationError as error:
        problems = "\n".join(
            f"  PHOTOMESH_{str(problem['loc'][0]).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise SystemExit(
            f"The environment does not configure {settings.__name__}:\n{problems}"
        ) from None
