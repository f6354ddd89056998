import datetime as dt
import ipaddress
import json
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.local import pki
from deploy.processes import IDENTITIES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "pki"
    pki.ensure(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "pki"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def certificate(folder: Path, identity: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / identity / "cert.pem").read_bytes())


def names(folder: Path, identity: str) -> x509.SubjectAlternativeName:
    extensions = certificate(folder, identity).extensions
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def usages(folder: Path, identity: str) -> set[x509.ObjectIdentifier]:
    extensions = certificate(folder, identity).extensions
    return set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {Path(name).parts[0] for name in before | after if before.get(name) != after.get(name)}


def test_valid_files_are_never_rewritten(folder):
    before = contents(folder)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    assert pki.ensure(folder) == pki.ensure(folder)

    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written


def test_every_identity_works_as_server_and_as_client(folder):
    authority = certificate(folder, "ca")
    for identity in IDENTITIES:
        certificate(folder, identity).verify_directly_issued_by(authority)
        assert names(folder, identity).get_values_for_type(x509.DNSName) == [identity]
        assert names(folder, identity).get_values_for_type(x509.UniformResourceIdentifier) == [
            f"spiffe://photomesh/{identity}"
        ]
        assert usages(folder, identity) == {
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        }


def test_the_public_certificate_is_not_accepted_in_the_mesh(folder):
    assert names(folder, "public").get_values_for_type(x509.DNSName) == ["localhost"]
    assert names(folder, "public").get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1")
    ]
    assert usages(folder, "public") == {ExtendedKeyUsageOID.SERVER_AUTH}


def test_the_storage_and_the_mesh_do_not_trust_each_other(folder):
    for identity, authority in (("storage", "ca"), ("feed", "storage-ca")):
        with pytest.raises(InvalidSignature):
            certificate(folder, identity).verify_directly_issued_by(certificate(folder, authority))
    certificate(folder, "storage").verify_directly_issued_by(certificate(folder, "storage-ca"))


def test_only_the_owner_may_read(folder):
    for path in folder.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_leaves_are_renewed_in_their_last_30_days(folder):
    before = contents(folder)
    now = dt.datetime.now(dt.UTC)

    pki.ensure(folder, now=now + dt.timedelta(days=334))
    assert contents(folder) == before

    pki.ensure(folder, now=now + dt.timedelta(days=336))
    assert changed(before, contents(folder)) == {*IDENTITIES, "public", "storage"}


def test_a_new_authority_reissues_all_certificates(folder):
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=3640)

    pki.ensure(folder, now=later)

    authority = certificate(folder, "ca")
    assert authority.not_valid_after_utc > later + dt.timedelta(days=3600)
    certificate(folder, "feed").verify_directly_issued_by(authority)
    assert (folder / "feed/ca.pem").read_bytes() == (folder / "ca/cert.pem").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda leaf: (leaf / "key.pem").unlink(),
        lambda leaf: (leaf / "cert.pem").write_text("-----BEGIN CERT"),
        lambda leaf: (leaf / "ca.pem").write_text(""),
        lambda leaf: shutil.copy(leaf.parent / "post/key.pem", leaf / "key.pem"),
        lambda leaf: shutil.copytree(leaf.parent / "post", leaf, dirs_exist_ok=True),
    ],
    ids=["no key", "truncated certificate", "no authority", "wrong key", "another identity"],
)
def test_only_a_broken_leaf_is_reissued(folder, damage):
    before = contents(folder)
    damage(folder / "feed")

    pki.ensure(folder)

    assert changed(before, contents(folder)) == {"feed"}
    assert names(folder, "feed").get_values_for_type(x509.DNSName) == ["feed"]


def test_the_key_set_contains_only_public_keys(folder):
    (key,) = json.loads((folder / "jwks.json").read_text())["keys"]

    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    assert len(key["kid"]) == 43
    assert "d" not in key


def test_two_clones_share_no_secret(folder, tmp_path):
    other = pki.ensure(tmp_path / "other")
    mine = pki.ensure(folder)

    assert set(mine.database.values()).isdisjoint(other.database.values())
    assert mine.s3_media != other.s3_media
    assert (folder / "cdn.key").read_bytes() != (tmp_path / "other/cdn.key").read_bytes()


def test_no_secret_is_in_the_repr_of_credentials(tmp_path):
    credentials = pki.ensure(tmp_path)
    shown = repr(credentials)

    assert credentials.s3_media.access_key in shown
    for secret in (
        credentials.database_superuser,
        *credentials.database.values(),
        *(getattr(credentials, f"s3_{name}").secret_key for name in ("media", "broker", "edge")),
    ):
        assert secret not in shown
