"""Watching media over REST: one line of JSON for each change, while it happens."""

import json

from tests.pictures import photo


async def test_a_photo_is_watched_until_it_is_ready(person, http):
    ann = await person().sign_up()
    file = photo(300, 200)
    upload = await ann.open_upload(len(file))
    media_id = upload["media"]["mediaId"]
    states, steps = [], set()
    headers = {"authorization": f"Bearer {ann.token}"}
    async with http.stream("GET", f"/v1/media/{media_id}:watch", headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            message = json.loads(line)
            if "media" not in message:
                continue
            if not states:
                # It is told at once: only now is the file sent.
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
