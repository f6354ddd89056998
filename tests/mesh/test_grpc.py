"""The journey over gRPC through the gateway: with stubs, and by reflection as an SRE would."""

import asyncio
import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status.rpc_status import from_call
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceStub
from photomesh.feed.v1 import feed_service_pb2 as feed_pb
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceStub
from photomesh.graph.v1 import graph_internal_service_pb2 as graph_internal_pb
from photomesh.graph.v1 import graph_service_pb2 as graph_pb
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from photomesh.media.v1 import media_service_pb2 as media_pb
from photomesh.media.v1.media_service_pb2_grpc import MediaServiceStub
from photomesh.post.v1 import post_service_pb2 as post_pb
from photomesh.post.v1.post_service_pb2_grpc import PostServiceStub

from tests.eventually import PATIENCE_SECONDS, eventually
from tests.pictures import photo

BUF = Path(sysconfig.get_path("scripts")) / "buf"
GRPCURL = shutil.which("grpcurl") or shutil.which("grpcurl", path=str(Path.home() / "go/bin"))


@pytest.fixture
async def plain(mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports.gateway_http}") as channel:
        yield channel


@pytest.fixture
async def tls(mesh) -> AsyncIterator[grpc.aio.Channel]:
    ca = (mesh.layout.pki / "public" / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(ca)
    async with grpc.aio.secure_channel(
        f"localhost:{mesh.ports.gateway_https}", credentials
    ) as channel:
        yield channel


@pytest.fixture(params=["plain", "tls"])
def channel(request) -> grpc.aio.Channel:
    return request.getfixturevalue(request.param)


async def sign_up(channel) -> tuple[int, tuple]:
    """Returns a new account's id and the metadata of its calls."""
    answer = await AccountServiceStub(channel).CreateAccount(
        account_pb.CreateAccountRequest(
            username=f"grpc.{secrets.token_hex(6)}", password=secrets.token_hex(8)
        )
    )
    token = answer.session.access_token
    return answer.account.account_id, (("authorization", f"Bearer {token}"),)


async def test_the_journey_with_stubs(channel):
    media, post = MediaServiceStub(channel), PostServiceStub(channel)
    author_id, author = await sign_up(channel)
    _, follower = await sign_up(channel)
    await GraphServiceStub(channel).Follow(
        graph_pb.FollowRequest(account_id=author_id), metadata=follower
    )

    file = photo(900, 600)
    upload = await media.CreateUpload(
        media_pb.CreateUploadRequest(content_type="image/jpeg", size_bytes=len(file)),
        metadata=author,
    )
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as s3:
        sent = await s3.post(upload.upload_url, data=dict(upload.form_fields), files={"file": file})
    assert sent.is_success
    media_id = upload.media.media_id
    await media.CompleteUpload(media_pb.CompleteUploadRequest(media_id=media_id), metadata=author)
    made = await post.CreatePost(
        post_pb.CreatePostRequest(media_ids=[media_id], caption="by stub"), metadata=author
    )

    async def feed():
        return await FeedServiceStub(channel).GetFeed(feed_pb.GetFeedRequest(), metadata=follower)

    page = await eventually(feed, lambda page: page.posts)
    assert [post.post_id for post in page.posts] == [made.post.post_id]
    assert page.posts[0].author.account_id == author_id
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as browser:
        answer = await browser.get(page.posts[0].media[0].variants[0].url)
    assert answer.status_code == 200


async def test_errors_have_status_reason_and_fields(plain):
    _, caller = await sign_up(plain)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await PostServiceStub(plain).CreatePost(
            post_pb.CreatePostRequest(media_ids=[1], caption="x" * 2201), metadata=caller
        )
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    first, second = from_call(refused.value).details
    assert first.Unpack(info)
    assert second.Unpack(fields)
    assert (info.reason, info.domain) == ("FIELD_INVALID", "photomesh")
    assert len(info.metadata["traceId"]) == 32
    assert [violation.field for violation in fields.field_violations] == ["caption"]


async def test_calls_without_a_token_and_to_internal_services_are_refused(plain):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await FeedServiceStub(plain).GetFeed(feed_pb.GetFeedRequest())
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED

    _, caller = await sign_up(plain)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await GraphInternalServiceStub(plain).ListFollowees(
            graph_internal_pb.ListFolloweesRequest(follower_id=1), metadata=caller
        )
    assert refused.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)


async def test_only_named_services_may_call_an_internal_method(mesh):
    """The operator's certificate opens the public services, not the internal ones."""
    identity = mesh.operator
    credentials = grpc.ssl_channel_credentials(
        *((identity / f"{part}.pem").read_bytes() for part in ("ca", "key", "cert"))
    )
    options = [("grpc.ssl_target_name_override", "graph")]
    address = mesh.ports.address("graph")
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await GraphInternalServiceStub(channel).ListFollowees(
                graph_internal_pb.ListFolloweesRequest(follower_id=1)
            )
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED

    ca_alone = grpc.ssl_channel_credentials((identity / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(address, ca_alone, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await GraphServiceStub(channel).Follow(
                graph_pb.FollowRequest(account_id=1), timeout=PATIENCE_SECONDS
            )
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # buf must not use the cache in the user's home.
        env={**os.environ, "HOME": "/nonexistent", "BUF_CACHE_DIR": "/tmp"},
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def by_buf(mesh):
    async def call(method: str, body: dict, token: str = "") -> dict:
        headers = ["--header", f"authorization: Bearer {token}"] if token else []
        url = f"http://127.0.0.1:{mesh.ports.gateway_http}/{method}"
        command = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", *headers)
        return json.loads(await run(str(BUF), *command, "--data", json.dumps(body), url))

    return call


def by_grpcurl(mesh):
    if GRPCURL is None:
        pytest.skip("grpcurl is not installed (go install .../grpcurl@latest)")

    async def call(method: str, body: dict, token: str = "") -> dict:
        headers = ["-H", f"authorization: Bearer {token}"] if token else []
        address = f"127.0.0.1:{mesh.ports.gateway_http}"
        return json.loads(
            await run(GRPCURL, "-plaintext", *headers, "-d", json.dumps(body), address, method)
        )

    return call


@pytest.mark.parametrize("client", [by_buf, by_grpcurl], ids=["buf curl", "grpcurl"])
async def test_the_journey_by_reflection(mesh, client):
    call = client(mesh)

    async def new_user() -> tuple[str, str]:
        answer = await call(
            "photomesh.account.v1.AccountService/CreateAccount",
            {"username": f"curl.{secrets.token_hex(6)}", "password": secrets.token_hex(8)},
        )
        return answer["account"]["accountId"], answer["session"]["accessToken"]

    (author_id, author), (_, follower) = await new_user(), await new_user()
    await call("photomesh.graph.v1.GraphService/Follow", {"accountId": author_id}, follower)
    file = photo(300, 200)
    upload = await call(
        "photomesh.media.v1.MediaService/CreateUpload",
        {"contentType": "image/jpeg", "sizeBytes": str(len(file))},
        author,
    )
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as s3:
        sent = await s3.post(upload["uploadUrl"], data=upload["formFields"], files={"file": file})
    assert sent.is_success
    media_id = upload["media"]["mediaId"]
    await call("photomesh.media.v1.MediaService/CompleteUpload", {"mediaId": media_id}, author)
    made = await call("photomesh.post.v1.PostService/CreatePost", {"mediaIds": [media_id]}, author)
    page = await eventually(
        lambda: call("photomesh.feed.v1.FeedService/GetFeed", {}, follower),
        lambda page: page.get("posts"),
    )
    assert [post["postId"] for post in page["posts"]] == [made["post"]["postId"]]
