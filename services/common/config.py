"""Settings from the environment: every variable is `PHOTOMESH_<FIELD>`.

A service's own `config.py` composes these groups into one frozen class.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.valkey import parse_url


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise ValueError("must be host:port")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""A host and a port, such as `127.0.0.1:18101`."""


class _Group(BaseSettings):
    """What all groups agree on: of several bases, the last one's `model_config` would win."""

    model_config = SettingsConfigDict(env_prefix="PHOTOMESH_", frozen=True, extra="ignore")


class MeshSettings(_Group):
    """What every process of the mesh needs."""

    listen: Address
    """Where the gRPC server listens."""
    tls_dir: Path
    """Folder with this process's identity: `ca.pem`, `cert.pem` and `key.pem`."""
    log_level: str = "INFO"
    drain_seconds: float = 10.0
    """How long calls in progress may go on after SIGTERM."""


class DatabaseSettings(_Group):
    """Where a service's own schema is."""

    database_url: SecretStr
    database_pool_size: int = 8
    database_timeout_seconds: float = 3.0
    """How long a call waits for a connection, and how long one statement may run."""


class CacheSettings(_Group):
    """Where Valkey or Redis is."""

    valkey_url: str
    """`redis[s]://[[user]:password@]host:port[,host:port...][/database]`.

    One server, or, where several are named, a cluster that is found through any of them; a cluster
    with one address for all is named twice.
    """
    valkey_timeout_seconds: float = 0.5
    """How long a server may take to connect, and then to answer."""

    @field_validator("valkey_url")
    @classmethod
    def _can_be_parsed(cls, value: str) -> str:
        parse_url(value)
        return value


class KafkaSettings(_Group):
    """Where the broker is."""

    kafka_bootstrap: str
    """Comma-separated host:port pairs."""
    kafka_session_seconds: float = 6.0
    """After how long a consumer that died is missed; Apache Kafka allows no less than 6."""


class StorageSettings(_Group):
    """Where S3 is."""

    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"
    originals_bucket: str = "photomesh-originals"
    media_bucket: str = "photomesh-media"


class CdnSettings(_Group):
    """How media URLs are made."""

    cdn_url: str
    """The CDN's origin, without a slash at the end."""
    cdn_signer: Literal["edge", "cloudfront"] = "edge"
    """Which CDN it is: the Envoy edge, or Amazon CloudFront."""
    cdn_key_file: Path
    """For the edge, the HS256 secret as hexadecimal text; for CloudFront, an RSA key as PEM."""
    cdn_key_pair_id: str = Field(default="", validate_default=True)
    """Under which id CloudFront knows the key; the edge has no such ids."""

    @field_validator("cdn_key_pair_id")
    @classmethod
    def _only_cloudfront_has_ids(cls, value: str, info: ValidationInfo) -> str:
        cloudfront = info.data.get("cdn_signer") == "cloudfront"
        if cloudfront and not value:
            raise ValueError("must be set for the signer cloudfront")
        if value and not cloudfront:
            raise ValueError("must not be set for the signer edge")
        return value


Settings = TypeVar("Settings", bound=BaseSettings)


def load(settings: type[Settings]) -> Settings:
    """Reads settings from the environment.

    Raises:
        SystemExit: a variable is missing or cannot be understood; the text names each.
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
