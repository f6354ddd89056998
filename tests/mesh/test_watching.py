"""Watching media and feeds over REST and gRPC: changes are sent as they happen."""

import asyncio
import json

import grpc
from photomesh.feed.v1 import feed_service_pb2 as feed_pb
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceStub

from tests.pictures import photo


async def events(answer):
    """Yields the data of server-sent events."""
    assert answer.headers["content-type"] == "text/event-stream"
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        if line:
            assert field == "data"
            yield json.loads(value)


async def test_a_photo_is_watched_until_it_is_ready(person, http):
    ann = await person().sign_up()
    file = photo(300, 200)
    upload = await ann.open_upload(len(file))
    media_id = upload["media"]["mediaId"]
    states, steps = [], set()
    headers = {"authorization": f"Bearer {ann.token}"}
    async with http.stream("GET", f"/v1/media/{media_id}:watch", headers=headers) as answer:
        assert answer.status_code == 200
        async for message in events(answer):
            if "media" not in message:
                continue
            if not states:
                # The first state is sent at once, before the file is uploaded.
                await ann.send_file(upload, file)
                await ann.complete(media_id)
            states.append(message["media"]["state"])
            assert steps <= set(message["progress"]["stepsDone"])
            steps = set(message["progress"]["stepsDone"])
            assert message["progress"]["stepsTotal"] == 20
            assert message["last"] == (states[-1] == "MEDIA_STATE_READY")

    assert states[0] == "MEDIA_STATE_PENDING"
    assert states[-1] == "MEDIA_STATE_READY"
    assert message["media"]["variants"]
    assert len(steps) == 20
    assert {"picture", "w2048", "w2048.avif", "blurhash"} < steps


async def test_a_feed_is_watched_by_rest_and_by_grpc_until_its_server_drains(mesh, person, http):
    ann, bea = await person().sign_up(), await person().sign_up()
    await ann.follow(bea)
    media_id = await bea.upload(photo(300, 200))
    await bea.processed(media_id)
    bearer = {"authorization": f"Bearer {ann.token}"}
    async with (
        http.stream("GET", "/v1/feed:watch", headers=bearer) as answer,
        grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports.gateway_http}") as channel,
    ):
        assert answer.status_code == 200
        by_rest = events(answer)
        assert await anext(by_rest) == {"resumeAfterPostId": "1"}

        post = await bea.post(media_id, caption="seen at once")
        message = await anext(by_rest)
        assert message["post"]["caption"] == "seen at once"
        assert message["post"]["author"]["username"] == bea.username
        assert message["resumeAfterPostId"] == message["post"]["postId"] == post["postId"]

        by_grpc = FeedServiceStub(channel).WatchFeed(
            feed_pb.WatchFeedRequest(after_post_id=1), metadata=tuple(bearer.items())
        )
        begun, missed = await by_grpc.read(), await by_grpc.read()
        assert begun == feed_pb.WatchFeedResponse(resume_after_post_id=1)
        assert str(missed.post.post_id) == post["postId"]

        await asyncio.to_thread(mesh.restart, "feed")
        assert await anext(by_rest) == {
            "end": "WATCH_FEED_END_DRAINING",
            "resumeAfterPostId": post["postId"],
        }
        assert [message async for message in by_rest] == []
        last = await by_grpc.read()
        assert last.end == feed_pb.WATCH_FEED_END_DRAINING
        assert await by_grpc.read() is grpc.aio.EOF
