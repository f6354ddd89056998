"""Requests that the gateway itself refuses, over REST and gRPC."""

import json
import re
import ssl
from collections.abc import Iterator
from operator import attrgetter

import grpc
import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.feed.v1 import feed_service_pb2 as feed_pb
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from photomesh.post.v1 import post_internal_service_pb2 as internal_pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from gateway.contracts import public_methods
from services.chassis.contracts import DESCRIPTORS
from tests.gateway.refusals import Refusal

INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 14, 16

METHODS = public_methods(DESCRIPTORS)
NAME = attrgetter("name")

# Invalid tokens, and the reason of the error for each.
BAD_TOKENS = {
    "expired": "TOKEN_EXPIRED",
    "foreign key": "TOKEN_INVALID",
    "unknown key id": "TOKEN_INVALID",
    "other issuer": "TOKEN_INVALID",
    "other audience": "TOKEN_INVALID",
    "no audience": "TOKEN_INVALID",
    "no expiry": "TOKEN_INVALID",
    "not signed": "TOKEN_INVALID",
    "signed with the public key": "TOKEN_INVALID",
    "no token": "TOKEN_INVALID",
}


@pytest.fixture(params=BAD_TOKENS)
def bad_token(request, access_tokens):
    """An invalid token, and the reason of its error."""
    make = access_tokens.make
    # If the gateway trusted the token's algorithm, HMAC would use the public key as its key.
    public = access_tokens.key.public_key().public_bytes_raw()
    tokens = {
        "expired": lambda: make(seconds=-60),
        "foreign key": lambda: make(key=Ed25519PrivateKey.generate()),
        "unknown key id": lambda: make(key_id="another"),
        "other issuer": lambda: make(iss="someone"),
        "other audience": lambda: make(aud="something"),
        "no audience": lambda: make(aud=None),
        "no expiry": lambda: make(exp=None),
        "not signed": lambda: jwt.encode({"iss": "photomesh", "sub": "42"}, None, "none"),
        "signed with the public key": lambda: make(key=public, algorithm="HS256"),
        "no token": lambda: "abc",
    }
    return tokens[request.param](), BAD_TOKENS[request.param]


def test_an_invalid_token_is_refused(gateway, bad_token):
    token, reason = bad_token
    answer = gateway.get("/v1/feed", headers={"authorization": f"Bearer {token}"})
    assert Refusal.of(answer) == Refusal(401, UNAUTHENTICATED, reason, {})


@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic YTpi"}], ids=["none", "basic"])
@pytest.mark.parametrize("method", [m for m in METHODS if not m.without_token], ids=NAME)
def test_a_call_without_a_token_is_refused_unless_the_contract_allows_it(gateway, method, headers):

    calls = [("POST", method.path)]
    if method.http_path:
        calls.append((method.http_verb, re.sub(r"\{[^}]*\}", "1", method.http_path)))
    for verb, path in calls:
        answer = gateway.request(verb, path, headers=headers)
        assert Refusal.of(answer) == Refusal(401, UNAUTHENTICATED, "TOKEN_MISSING", {})


def test_a_token_in_the_query_is_ignored(gateway, access_tokens):
    answer = gateway.get("/v1/feed", params={"access_token": access_tokens.make()})
    assert Refusal.of(answer).reason == "TOKEN_MISSING"


def test_signing_up_and_in_needs_no_token(gateway):
    paths = {method.http_path for method in METHODS if method.without_token}
    assert paths == {"/v1/accounts", "/v1/sessions", "/v1/sessions:refresh"}
    for path in paths:
        assert Refusal.of(gateway.post(path, json={})).reason == "UNAVAILABLE"


def test_calls_to_a_stopped_service_get_unavailable(gateway, signed_in):
    answer = gateway.get("/v1/feed", headers=signed_in)
    assert Refusal.of(answer) == Refusal(503, UNAVAILABLE, "UNAVAILABLE", {})


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/nothing"),
        # The transcoder would map these two to GetFeed, past the route that requires a token.
        ("GET", "/v1/feed/"),
        ("GET", "/v1/feed//"),
        ("HEAD", "/v1/feed"),
        ("DELETE", "/v1/feed"),
        ("GET", "/v1/accounts"),
        ("POST", "/v1/media/5:destroy"),
        ("POST", "/photomesh.feed.v1.FeedService/GetFeed/"),
        ("POST", "/photomesh.feed.v1.FeedService/Nothing"),
        ("POST", "/photomesh.post.v1.PostInternalService/BatchGetPosts"),
        ("POST", "/v1/../photomesh.post.v1.PostInternalService/BatchGetPosts"),
        ("POST", "/grpc.health.v1.Health/Check"),
    ],
)
@pytest.mark.parametrize("token", [True, False], ids=["token", "no token"])
def test_paths_that_are_not_public_do_not_exist(gateway, signed_in, verb, path, token):
    answer = gateway.request(verb, path, headers=signed_in if token else {})
    if verb == "HEAD":
        assert answer.status_code == 404
    else:
        assert Refusal.of(answer) == Refusal(404, NOT_FOUND, "ROUTE_UNKNOWN", {})


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/posts", {"mediaIds": ["1"], "colour": "red"}, "colour"),
        ("/v1/posts", {"mediaIds": ["1"], 'co"l\\our': "red"}, 'co\\"l\\\\our'),
        ("/v1/posts", {"mediaIds": "1"}, "media_ids"),
        ("/v1/posts", {"mediaIds": 1}, "media_ids"),
        ("/v1/posts", {"mediaIds": {"0": "1"}}, "media_ids"),
        ("/v1/posts", {"mediaIds": ["1", "two"]}, "media_ids"),
        ("/v1/posts", {"mediaIds": [["1"]]}, "media_ids[0]"),
        ("/v1/posts", {"caption": 5}, "caption"),
        ("/v1/posts", {"caption": ["a"]}, "caption"),
        ("/v1/posts", {"caption": {"a": "b"}}, "caption"),
        ("/v1/media/upload", {"sizeBytes": 1.5}, "size_bytes"),
        ("/v1/media/upload", {"sizeBytes": "9" * 30}, "size_bytes"),
        ("/v1/accounts/two:follow", {}, "account_id"),
        # A field in the path must not be in the body too.
        ("/v1/accounts/2:follow", {"accountId": "3"}, "accountId"),
        # Lists would be concatenated.
        ("/v1/posts", {"mediaIds": ["1"], "media_ids": ["2"]}, "media_ids"),
    ],
)
def test_the_error_names_an_unparsable_field(gateway, signed_in, path, body, field):
    refusal = Refusal.of(gateway.post(path, json=body, headers=signed_in))
    assert (refusal.status, refusal.code) == (400, INVALID_ARGUMENT)
    assert refusal.reason == "REQUEST_MALFORMED"
    assert set(refusal.fields) == {field}


@pytest.mark.parametrize(
    ("query", "field"),
    [("colour=red", "colour"), ("pageSize=many", "page_size"), ("page_size=1.5", "page_size")],
)
def test_the_error_names_an_unparsable_query_parameter(gateway, signed_in, query, field):
    refusal = Refusal.of(gateway.get(f"/v1/feed?{query}", headers=signed_in))
    assert (refusal.status, refusal.reason) == (400, "REQUEST_MALFORMED")
    assert set(refusal.fields) == {field}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"hello",
        b"[]",
        b'"text"',
        b"{}{}",
        b'{"username": "a",}',
        b"{'username': 'a'}",
        b'{username: "a"}',
        b'{"username": "a\nb"}',
        b'{"username": 01}',
        b'{"username": NaN}',
        b'{"username": "\xff"}',
        b'{"username": "\xed\xa0\x80"}',
        b'{"username": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_not_json_is_refused(gateway, body):
    refusal = Refusal.of(gateway.post("/v1/accounts", content=body))
    assert (refusal.status, refusal.reason) == (400, "REQUEST_MALFORMED")


def test_text_that_is_not_utf8_is_refused(gateway, signed_in):
    answer = gateway.get("/v1/feed?pageToken=%ff", headers=signed_in)
    assert Refusal.of(answer) == Refusal(400, INVALID_ARGUMENT, "REQUEST_MALFORMED", {})


# Pieces of JSON, whose concatenations are sometimes valid.
_json_text = st.one_of(
    st.dictionaries(st.sampled_from(["username", "password"]), st.text(max_size=8)).map(json.dumps),
    st.lists(
        st.sampled_from(
            ["{", "}", ":", ",", " ", "\n", '"username"', '"é\\u00e9\\n"', '"\\', '"', "null", "-"]
        ),
        max_size=9,
    ).map("".join),
)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(pairs)
    return value


@settings(max_examples=150, deadline=None)
@given(text=_json_text)
def test_json_passes_exactly_when_it_is_valid_for_the_message(gateway, text):
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError:
        passes = not text
    else:
        passes = isinstance(value, dict) and set(value) <= {"username", "password"}
    answer = gateway.post("/v1/accounts", content=text.encode("utf-8", "surrogatepass"))
    assert answer.status_code == (503 if passes else 400), answer.text


MAX_BYTES = 64 << 10


def filled(begin: bytes, piece: bytes, end: bytes = b"") -> bytes:
    """Returns a body of the maximum size, filled with as many pieces as fit."""
    return begin + piece * ((MAX_BYTES - len(begin) - len(end)) // len(piece)) + end


@pytest.mark.parametrize(
    "body",
    [
        filled(b"", b"["),
        filled(b"", b"{"),
        filled(b"", b'{"caption":'),
        filled(b'{"mediaIds":', b"["),
        filled(b'{"mediaIds":[', b"[],", b"[]]}"),
        filled(b'{"mediaIds":[', b"1,", b"1]}"),
        filled(b'{"mediaIds":[', b"null,", b"null]}"),
        filled(b'{"mediaIds":[', b"1", b"]}"),
        filled(b'{"mediaIds":[0x', b"f", b"]}"),
        filled(b'{"mediaIds":[1e', b"9", b"]}"),
        filled(b'{"mediaIds":[', b"-", b"]}"),
        filled(b'{"caption":"",', b'"caption":"",', b'"caption":""}'),
        filled(b'{"mediaIds":[],', b'"media_ids":[],', b'"mediaIds":[]}'),
        filled(b'{"caption":"', b'\\"'),
        filled(b'{"caption":"', "🌅".encode(), b'\xff"}'),
        filled(b'{"', b"k", b'":1}'),
        filled(b'{"', b'\\"', b'":1}'),
        b"{" + b",".join(b'"%d":1' % number for number in range(6_000)) + b"}",
    ],
    ids=lambda body: body[:20].decode(),
)
def test_errors_for_the_worst_json_are_short(gateway, signed_in, body):
    assert len(body) <= MAX_BYTES
    answer = gateway.post("/v1/posts", content=body, headers=signed_in)
    refusal = Refusal.of(answer)
    assert (refusal.status, refusal.reason) == (400, "REQUEST_MALFORMED")
    # However much it quotes of the body.
    assert len(answer.content) < 4_096
    assert gateway.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/feed?pageSize=" + "a" * 30_000, {"page_size"}),
        ("/v1/feed?" + "a" * 30_000 + "=1", set()),
        ("/v1/posts/" + "9" * 30_000, {"post_id"}),
    ],
    ids=["value", "name", "path"],
)
def test_errors_do_not_repeat_a_long_query(gateway, signed_in, path, fields):
    answer = gateway.get(path, headers=signed_in)
    assert len(answer.content) < 4_096
    refusal = Refusal.of(answer)
    assert (refusal.status, refusal.reason) == (400, "REQUEST_MALFORMED")
    assert refusal.fields.keys() == fields


@pytest.mark.parametrize(
    "method",
    [
        method
        for method in public_methods(DESCRIPTORS)
        if method.http_path and not method.body and not method.takes_file
    ],
    ids=lambda method: method.name,
)
def test_a_body_is_refused_if_the_method_takes_none(gateway, signed_in, method):
    # Otherwise the transcoder would read unchecked fields from it.
    path = re.sub(r"\{[^}]*\}", "1", method.http_path)
    if method.name == "GetFeed":
        # In its plain form, this request is not transcoded.
        path += "?pageSize=%31"
    answer = gateway.request(method.http_verb, path, content=b"{}", headers=signed_in)
    assert Refusal.of(answer) == Refusal(400, INVALID_ARGUMENT, "REQUEST_MALFORMED", {})


def test_the_largest_valid_request_passes(gateway, signed_in):
    post = {
        "mediaIds": [str(2**63 - 1 - number) for number in range(10)],
        "caption": "🌅" * 2_200,
        "requestId": "🌅" * 64,
    }
    body = json.dumps(post).encode()
    assert body.count(b"\\ud83c") == 2_264
    answer = gateway.post("/v1/posts", content=body, headers=signed_in)
    assert Refusal.of(answer).reason == "UNAVAILABLE"


def chunks(body: bytes) -> Iterator[bytes]:
    """Yields a body in chunks, so that the request has no Content-Length."""
    for at in range(0, len(body), 4_096):
        yield body[at : at + 4_096]


@pytest.mark.parametrize("form", [bytes, chunks], ids=["whole", "chunked"])
def test_json_of_more_than_64_kib_is_refused(gateway, signed_in, form):
    def answer(size: int) -> Refusal:
        body = b'{"caption": ""}'.ljust(size)
        return Refusal.of(gateway.post("/v1/posts", content=form(body), headers=signed_in))

    assert answer(MAX_BYTES).reason == "UNAVAILABLE"
    too_large = Refusal(413, INVALID_ARGUMENT, "REQUEST_MALFORMED", {})
    assert answer(MAX_BYTES + 1) == too_large
    assert answer(1_000_000) == too_large


def test_too_large_headers_are_refused(gateway):
    headers = gateway.get("/v1/feed", headers={"x-long": "a" * 40_000})
    assert Refusal.of(headers) == Refusal(431, INVALID_ARGUMENT, "REQUEST_MALFORMED", {})


@pytest.mark.parametrize("path", ["/v1/a%2ffeed", "/v1/..%5cfeed"])
def test_an_escaped_slash_is_refused(gateway, signed_in, path):
    answer = gateway.get(path, headers=signed_in)
    assert Refusal.of(answer) == Refusal(400, INVALID_ARGUMENT, "REQUEST_MALFORMED", {})


def test_a_header_with_an_underscore_is_refused(gateway):
    answer = gateway.get("/v1/feed", headers={"x_photomesh_user_id": "1"})
    assert Refusal.of(answer).reason == "REQUEST_MALFORMED"


def test_the_gateway_answers_health_checks(gateway):
    answer = gateway.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "SERVING"})


def test_the_tls_listener_speaks_http(lonely, signed_in):
    trusted = ssl.create_default_context(cafile=lonely.layout.pki / "public/ca.pem")
    url = f"https://localhost:{lonely.ports.gateway_https}/v1/feed"
    answer = httpx.get(url, verify=trusted, headers=signed_in)
    assert Refusal.of(answer).reason == "UNAVAILABLE"


# --- gRPC ----------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "TLS"])
def channel(request, lonely):
    if request.param == "plain":
        with grpc.insecure_channel(f"127.0.0.1:{lonely.ports.gateway_http}") as channel:
            yield channel
    else:
        authority = (lonely.layout.pki / "public/ca.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        address = f"localhost:{lonely.ports.gateway_https}"
        with grpc.secure_channel(address, credentials) as channel:
            yield channel


def refusal_of(call, request, token=None) -> tuple[grpc.StatusCode, str]:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with pytest.raises(grpc.RpcError) as refused:
        call(request, metadata=metadata, timeout=10)
    status = rpc_status.from_call(refused.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "photomesh"
    return refused.value.code(), info.reason


def test_grpc_callers_get_a_grpc_status(channel, access_tokens):
    feed = FeedServiceStub(channel).GetFeed
    request = feed_pb.GetFeedRequest()
    good = access_tokens.make()
    assert refusal_of(feed, request) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert refusal_of(feed, request, good) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    create = AccountServiceStub(channel).CreateAccount
    assert refusal_of(create, account_pb.CreateAccountRequest()) == (
        grpc.StatusCode.UNAVAILABLE,
        "UNAVAILABLE",
    )
    internal = PostInternalServiceStub(channel).BatchGetPosts
    for token in (None, good):
        assert refusal_of(internal, internal_pb.BatchGetPostsRequest(), token) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "ROUTE_UNKNOWN",
        )


def test_an_invalid_token_gets_a_grpc_status(lonely, bad_token):
    token, reason = bad_token
    with grpc.insecure_channel(f"127.0.0.1:{lonely.ports.gateway_http}") as channel:
        refusal = refusal_of(FeedServiceStub(channel).GetFeed, feed_pb.GetFeedRequest(), token)
    assert refusal == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_grpc_web_callers_get_a_grpc_status(gateway):
    answer = gateway.post(
        "/photomesh.feed.v1.FeedService/GetFeed",
        content=b"\0\0\0\0\0",
        headers={"content-type": "application/grpc-web+proto"},
    )
    assert answer.headers["grpc-status"] == str(UNAUTHENTICATED)
    assert answer.headers["grpc-status-details-bin"]
