"""Feed pages over REST are equal whether feed serves them directly or via the transcoder."""

import json
import re
from typing import Any

import pytest

from tests.eventually import eventually
from tests.pictures import photo


async def _upstreams(mesh, path: str) -> set[str]:
    """Returns the processes to which the gateway sent the requests for a path."""
    entries = [
        json.loads(line)
        for line in mesh.log("gateway").read_text().splitlines()
        if line.startswith("{")
    ]
    return {entry.get("upstream", "") for entry in entries if entry.get("path") == path}


def _without_tokens(page: str) -> Any:
    # Each form of a post is cached, and its URLs are signed, separately.
    return json.loads(re.sub(r"\?token=[^\"]*", "", page))


async def test_a_page_is_the_same_on_either_route(person, mesh):
    author, reader = await person().sign_up(), await person().sign_up()
    await reader.follow(author)
    media_id = await author.upload(photo())
    await author.processed(media_id)
    for caption in ('"Zwei" \\ drei\n🌅', "", "plain"):
        await author.post(media_id, caption=caption)
    await eventually(reader.feed, lambda feed: len(feed["posts"]) == 3)

    token = ""
    for number in range(2):
        # An unusual spelling of the query goes to the transcoder.
        as_it_is = await reader.get(f"/v1/feed?pageSize=2&pageToken={token}")
        transcoded = await reader.get(f"/v1/feed?pageSize=%32&pageToken={token}")
        assert as_it_is.status_code == transcoded.status_code == 200
        assert as_it_is.headers["content-type"] == transcoded.headers["content-type"]
        assert _without_tokens(as_it_is.text) == _without_tokens(transcoded.text)
        assert len(as_it_is.json()["posts"]) == 2 - number
        token = as_it_is.json()["nextPageToken"]
    assert token == ""

    ports = {mesh.ports.address("feed"), f"127.0.0.1:{mesh.ports.rest['feed']}"}
    await eventually(lambda: _upstreams(mesh, "/v1/feed"), lambda found: found >= ports)


@pytest.mark.parametrize(
    ("plain", "odd", "status"),
    [
        ("pageToken=made-up", "pageToken=made%2Dup", 400),
        ("page_size=101", "page_size=%3101", 400),
    ],
)
async def test_an_error_is_the_same_on_either_route(person, plain, odd, status):
    reader = await person().sign_up()
    answers = [await reader.get(f"/v1/feed?{query}") for query in (plain, odd)]
    bodies = [answer.json() for answer in answers]
    for body in bodies:
        del body["details"][0]["metadata"]["traceId"]
    assert [answer.status_code for answer in answers] == [status, status]
    assert bodies[0] == bodies[1]


async def test_an_unexpected_body_does_no_harm(person):
    reader = await person().sign_up()
    bearer = {"authorization": f"Bearer {reader.token}"}
    for _ in range(10):
        answer = await reader.http.request(
            "GET", "/v1/feed", headers=bearer, content=b"a" * 2_000_000
        )
        assert answer.status_code == 200, answer.text
    assert (await reader.get("/v1/feed")).status_code == 200
