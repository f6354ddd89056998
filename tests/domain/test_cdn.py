"""Signed media URLs for the edge and for CloudFront, checked as their verifiers do."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from services.chassis import config
from services.domain import cdn
from services.domain.cdn import CdnSettings

PREFIX = "2026/11/21/7/42/"
HOUR = 3600


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pem(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., CdnSettings]:
    """Makes settings with a key file of this content."""

    def make(key: bytes, **others: str) -> CdnSettings:
        (tmp_path / "key").write_bytes(key)
        return CdnSettings(cdn_url="https://cdn.test", cdn_key_file=tmp_path / "key", **others)

    return make


@pytest.fixture
def edge(settings) -> cdn.UrlSigner:
    return cdn.signer(settings(b"ab" * 32))


@pytest.fixture
def cloudfront(settings, rsa_key) -> cdn.UrlSigner:
    return cdn.signer(settings(pem(rsa_key), cdn_signer="cloudfront", cdn_key_pair_id="K2JCJM"))


def query(url: str) -> dict[str, str]:
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


def from_cloudfronts_base64(text: str) -> bytes:
    return base64.b64decode(text.translate(str.maketrans("-_~", "+=/")))


def test_urls_of_the_edge_have_a_token_for_the_prefix(edge):
    url = edge.sign(PREFIX).url("w600.jpg")

    assert url.startswith(f"https://cdn.test/media/{PREFIX}w600.jpg?token=")
    claims = jwt.decode(query(url)["token"], b"\xab" * 32, algorithms=["HS256"])
    assert claims["p"] == f"/media/{PREFIX}"
    assert claims["exp"] % HOUR == 0
    assert 2 * HOUR <= claims["exp"] - time.time() <= 3 * HOUR


def test_urls_of_cloudfront_have_a_signed_policy_for_the_prefix(cloudfront, rsa_key):
    url = cloudfront.sign(PREFIX).url("w600.jpg")

    assert url.startswith(f"https://cdn.test/media/{PREFIX}w600.jpg?Policy=")
    asked = query(url)
    assert asked["Key-Pair-Id"] == "K2JCJM"
    text = from_cloudfronts_base64(asked["Policy"])
    rsa_key.public_key().verify(
        from_cloudfronts_base64(asked["Signature"]), text, padding.PKCS1v15(), hashes.SHA1()
    )
    [statement] = json.loads(text)["Statement"]
    assert statement["Resource"] == f"https://cdn.test/media/{PREFIX}*"
    expiry = statement["Condition"]["DateLessThan"]["AWS:EpochTime"]
    assert expiry % HOUR == 0
    assert 2 * HOUR <= expiry - time.time() <= 3 * HOUR


@pytest.mark.parametrize("name", ["edge", "cloudfront"])
def test_all_variants_and_viewers_of_an_hour_share_a_signature(request, name):
    signer = request.getfixturevalue(name)
    first, again = signer.sign(PREFIX), signer.sign(PREFIX)
    assert query(first.url("w600.jpg")) == query(first.url("w1080.webp")) or crosses_the_hour()
    assert first.url("w600.jpg") == again.url("w600.jpg") or crosses_the_hour()
    assert query(signer.sign("2026/11/21/7/43/").url("x")) != query(first.url("x"))


def crosses_the_hour() -> bool:
    return time.time() % HOUR < 5


@pytest.mark.parametrize(
    ("key", "others", "message"),
    [
        (b"no key", {}, "hexadecimal"),
        (b"ab" * 32, {"cdn_signer": "cloudfront", "cdn_key_pair_id": "K"}, "RSA"),
        (
            pem(ec.generate_private_key(ec.SECP256R1())),
            {"cdn_signer": "cloudfront", "cdn_key_pair_id": "K"},
            "RSA",
        ),
    ],
)
def test_a_key_of_another_signer_is_refused(settings, key, others, message):
    with pytest.raises(SystemExit, match=f"PHOTOMESH_CDN_KEY_FILE.*{message}"):
        cdn.signer(settings(key, **others))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PHOTOMESH_CDN_SIGNER": "cloudfront"}, "PHOTOMESH_CDN_KEY_PAIR_ID: .*must be set"),
        ({"PHOTOMESH_CDN_KEY_PAIR_ID": "K"}, "PHOTOMESH_CDN_KEY_PAIR_ID: .*must not be set"),
        ({"PHOTOMESH_CDN_SIGNER": "akamai"}, "PHOTOMESH_CDN_SIGNER: "),
    ],
)
def test_settings_that_contradict_each_other_are_refused(monkeypatch, variables, message):
    complete = {"PHOTOMESH_CDN_URL": "http://cdn", "PHOTOMESH_CDN_KEY_FILE": "key"}
    for name, value in {**complete, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        config.load(CdnSettings)
