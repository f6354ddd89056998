"""Invalid calls get an error with status, reason and field, as JSON."""

import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.eventually import eventually
from tests.mesh.people import ApiError
from tests.pictures import photo


@pytest.fixture
async def someone(person):
    return await person().sign_up()


async def refusal(call) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await call
    return refused.value


@pytest.mark.parametrize(
    ("method", "path", "body", "parameters", "status", "reason", "field"),
    [
        (
            "POST",
            "/v1/posts",
            {"mediaIds": ["1"], "colour": "red"},
            {},
            400,
            "REQUEST_MALFORMED",
            "colour",
        ),
        ("GET", "/v1/feed", None, {"colour": "red"}, 400, "REQUEST_MALFORMED", "colour"),
        ("GET", "/v1/feed", None, {"pageSize": "many"}, 400, "REQUEST_MALFORMED", None),
        ("GET", "/v1/feed", None, {"pageSize": 101}, 400, "FIELD_INVALID", "page_size"),
        ("GET", "/v1/feed", None, {"pageToken": "made-up"}, 400, "BAD_PAGE_TOKEN", "page_token"),
        ("POST", "/v1/posts", {"mediaIds": "1"}, {}, 400, "REQUEST_MALFORMED", None),
        ("POST", "/v1/posts", {"mediaIds": ["one"]}, {}, 400, "REQUEST_MALFORMED", None),
        ("POST", "/v1/posts", {"mediaIds": []}, {}, 400, "FIELD_INVALID", "media_ids"),
        (
            "POST",
            "/v1/posts",
            {"mediaIds": ["1"], "caption": "x" * 2201},
            {},
            400,
            "FIELD_INVALID",
            "caption",
        ),
        ("POST", "/v1/posts", {"mediaIds": ["1"]}, {}, 404, "MEDIA_UNKNOWN", "media_ids[0]"),
        ("GET", "/v1/posts/1", None, {}, 404, "POST_UNKNOWN", None),
        ("GET", "/v1/posts/one", None, {}, 400, "REQUEST_MALFORMED", None),
        ("GET", "/v1/media/1", None, {}, 404, "MEDIA_UNKNOWN", None),
        ("POST", "/v1/media/1:complete", {}, {}, 404, "MEDIA_UNKNOWN", None),
        (
            "POST",
            "/v1/media/upload",
            {"contentType": "image/jpeg", "sizeBytes": "33554433"},
            {},
            400,
            "FIELD_INVALID",
            "size_bytes",
        ),
        (
            "POST",
            "/v1/media/upload",
            {"contentType": "text/html", "sizeBytes": "3"},
            {},
            400,
            "FIELD_INVALID",
            "content_type",
        ),
        ("POST", "/v1/accounts/1:follow", {}, {}, 404, "ACCOUNT_UNKNOWN", "account_id"),
        (
            "POST",
            "/v1/accounts",
            {"username": "no spaces", "password": "long enough"},
            {},
            400,
            "FIELD_INVALID",
            "username",
        ),
        (
            "POST",
            "/v1/accounts",
            {"username": "short.password", "password": "short"},
            {},
            400,
            "FIELD_INVALID",
            "password",
        ),
        (
            "POST",
            "/v1/sessions",
            {"username": "no.such.user", "password": "whatever it is"},
            {},
            401,
            "CREDENTIALS_WRONG",
            None,
        ),
        (
            "POST",
            "/v1/sessions:refresh",
            {"refreshToken": "made-up"},
            {},
            401,
            "REFRESH_TOKEN_INVALID",
            None,
        ),
        ("GET", "/v1/nothing", None, {}, 404, "ROUTE_UNKNOWN", None),
        ("DELETE", "/v1/feed", None, {}, 404, "ROUTE_UNKNOWN", None),
        (
            "POST",
            "/photomesh.graph.v1.GraphInternalService/ListFollowees",
            {},
            {},
            404,
            "ROUTE_UNKNOWN",
            None,
        ),
    ],
)
async def test_an_invalid_request_gets_its_reason_and_field(
    someone, method, path, body, parameters, status, reason, field
):
    refused = await refusal(someone.call(method, path, body, **parameters))

    assert (refused.status, refused.reason) == (status, reason), refused
    if field:
        assert field in refused.fields, refused.body


async def test_malformed_json_is_refused(someone):
    answer = await someone.http.post(
        "/v1/posts", content=b'{"mediaIds": [', headers={"authorization": f"Bearer {someone.token}"}
    )

    assert ApiError(answer).reason == "REQUEST_MALFORMED"
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda claims: {**claims, "exp": int(time.time()) - 120}, "TOKEN_EXPIRED"),
        (lambda claims: {**claims, "aud": "somebody-else"}, "TOKEN_INVALID"),
        (lambda claims: {**claims, "iss": "somebody-else"}, "TOKEN_INVALID"),
    ],
    ids=["expired", "another audience", "another issuer"],
)
async def test_an_expired_or_foreign_token_is_refused(mesh, someone, change, reason):
    key = (mesh.layout.pki / "token" / "key.pem").read_text()
    header = jwt.get_unverified_header(someone.token)
    claims = jwt.decode(someone.token, options={"verify_signature": False})
    someone.token = jwt.encode(
        change(claims), key, algorithm="EdDSA", headers={"kid": header["kid"]}
    )

    refused = await refusal(someone.call("GET", "/v1/accounts/me"))

    assert (refused.status, refused.reason) == (401, reason)


async def test_missing_foreign_and_broken_tokens_are_refused(someone):
    claims = jwt.decode(someone.token, options={"verify_signature": False})
    header = jwt.get_unverified_header(someone.token)
    foreign = jwt.encode(
        claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": header["kid"]}
    )

    for token, reason in [
        ("", "TOKEN_MISSING"),
        (foreign, "TOKEN_INVALID"),
        ("x.y.z", "TOKEN_INVALID"),
    ]:
        someone.token = token
        refused = await refusal(someone.call("GET", "/v1/feed"))
        assert (refused.status, refused.reason) == (401, reason)


async def test_headers_cannot_set_the_identity_of_a_caller(someone, person):
    victim = await person().sign_up()

    answer = await someone.http.get(
        "/v1/accounts/me", headers={"x-photomesh-user-id": str(victim.account_id)}
    )
    assert ApiError(answer).reason == "TOKEN_MISSING"

    answer = await someone.http.get(
        "/v1/accounts/me",
        headers={
            "x-photomesh-user-id": str(victim.account_id),
            "authorization": f"Bearer {someone.token}",
        },
    )
    assert answer.json()["account"]["accountId"] == str(someone.account_id)


async def test_usernames_are_case_insensitive(someone, person):
    other = person()
    other.username = someone.username.upper()

    refused = await refusal(other.sign_up())

    assert (refused.status, refused.reason) == (409, "USERNAME_TAKEN")
    assert "username" in refused.fields


async def test_media_of_another_user_is_unknown(someone, person):
    owner = await person().sign_up()
    media_id = await owner.upload(photo(300, 200))

    for call in (
        someone.post(media_id),
        someone.media(media_id),
        someone.call("POST", f"/v1/media/{media_id}:complete", {}),
    ):
        refused = await refusal(call)
        assert (refused.status, refused.reason) == (404, "MEDIA_UNKNOWN")


async def test_an_object_that_was_never_uploaded_cannot_be_completed(someone):
    upload = await someone.open_upload(1000)
    media_id = upload["media"]["mediaId"]

    refused = await refusal(someone.call("POST", f"/v1/media/{media_id}:complete", {}))
    assert (refused.status, refused.reason) == (400, "OBJECT_MISSING")

    refused = await refusal(someone.post(media_id))
    assert (refused.status, refused.reason) == (400, "MEDIA_NOT_UPLOADED")
    assert "media_ids[0]" in refused.fields


async def test_s3_itself_refuses_another_size_and_another_type(someone):
    upload = await someone.open_upload(1000)

    assert (await someone.send_file(upload, b"x" * 1001)).status_code >= 400
    upload["formFields"]["Content-Type"] = "text/html"
    assert (await someone.send_file(upload, b"x" * 1000)).status_code >= 400


async def test_a_file_that_is_no_image_fails_with_its_post_and_the_next_upload_succeeds(
    mesh, someone
):
    # So that it does not fail before the post is created.
    with mesh.stalled("media-worker"):
        text = await someone.upload(b"This is no JPEG." * 10)
        waiting = await someone.post(text, caption="never")
    good = await someone.upload(photo(300, 200))
    post = await someone.post(good)

    media = await someone.processed(text)
    assert media["state"] == "MEDIA_STATE_FAILED"
    assert media["failure"] == "MEDIA_FAILURE_NOT_AN_IMAGE"
    failed = await eventually(
        lambda: someone.see_post(waiting["postId"]),
        lambda post: post["state"] == "POST_STATE_FAILED",
    )
    assert failed["media"][0]["failure"] == "MEDIA_FAILURE_NOT_AN_IMAGE"
    refused = await refusal(someone.post(text))
    assert (refused.status, refused.reason) == (400, "MEDIA_FAILED")

    await eventually(
        lambda: someone.see_post(post["postId"]),
        lambda post: post["state"] == "POST_STATE_PUBLISHED",
    )
    assert [post["postId"] async for post in someone.whole_feed()] == [post["postId"]]


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_session(someone):
    answer = await someone.call(
        "POST", "/v1/sessions", {"username": someone.username, "password": someone.password}
    )
    first = answer["session"]["refreshToken"]
    renewed = await someone.call("POST", "/v1/sessions:refresh", {"refreshToken": first})
    second = renewed["session"]["refreshToken"]
    someone.token = renewed["session"]["accessToken"]
    assert (await someone.call("GET", "/v1/accounts/me"))["account"]["username"] == someone.username

    for token in (first, second):
        refused = await refusal(
            someone.call("POST", "/v1/sessions:refresh", {"refreshToken": token})
        )
        assert (refused.status, refused.reason) == (401, "REFRESH_TOKEN_INVALID")
