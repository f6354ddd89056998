"""A gateway without services behind it, and valid and invalid tokens."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from deploy.local.ports import free_ports
from deploy.local.stack import Stack


def pytest_configure(config: pytest.Config) -> None:
    # Envoy's types were generated for an older pydantic, which causes about 100 warnings.
    config.addinivalue_line(
        "filterwarnings", "ignore::pydantic.warnings.PydanticDeprecatedSince212"
    )


@pytest.fixture(scope="session")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of which only the gateway runs: a call that it forwards fails with UNAVAILABLE."""
    folder = tmp_path_factory.mktemp("lonely")
    with Stack(folder, ports=free_ports(), ephemeral=True) as stack:
        stack.up(["gateway"])
        yield stack


@pytest.fixture(scope="session")
def gateway(lonely: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{lonely.ports.gateway_http}") as client:
        yield client


class AccessTokens:
    """Signs valid and invalid access tokens."""

    def __init__(self, pki: Path) -> None:
        self.key = load_pem_private_key((pki / "token/key.pem").read_bytes(), password=None)
        self.key_id = json.loads((pki / "jwks.json").read_text())["keys"][0]["kid"]

    def make(self, *, key=None, algorithm="EdDSA", key_id=None, seconds=60, **claims) -> str:
        """Omits claims that are None."""
        now = int(time.time())
        said = {
            "iss": "photomesh",
            "aud": "photomesh-api",
            "sub": "42",
            "exp": now + seconds,
        } | claims
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            self.key if key is None else key,
            algorithm=algorithm,
            headers={"kid": key_id or self.key_id},
        )


@pytest.fixture(scope="session")
def access_tokens(lonely: Stack) -> AccessTokens:
    return AccessTokens(lonely.layout.pki)


@pytest.fixture(scope="session")
def signed_in(access_tokens: AccessTokens) -> dict[str, str]:
    return {"authorization": f"Bearer {access_tokens.make(seconds=900)}"}
