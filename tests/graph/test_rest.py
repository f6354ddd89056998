"""The graph over REST: each path calls its method."""

import pytest

from tests.mesh.people import ApiError, Person


async def listed(person: Person, path: str, field: str) -> list[str]:
    answer = await person.call("GET", path)
    return [one["account"]["username"] for one in answer[field]]


async def test_follows_requests_mutes_and_blocks_work_over_rest(person):
    shy, friend, stranger = [await person().sign_up() for _ in range(3)]
    me, hers = f"/v1/accounts/{friend.account_id}", f"/v1/accounts/{shy.account_id}"

    await shy.call("PUT", "/v1/accounts/me/privacy", {"private": True})
    assert await shy.call("GET", "/v1/accounts/me/privacy") == {"private": True}
    answer = await friend.call("POST", f"{hers}:follow", {})
    assert answer == {"state": "FOLLOW_STATE_REQUESTED"}
    await stranger.call("POST", f"{hers}:follow", {})
    requests = "/v1/accounts/me/receivedRequests"
    assert await listed(shy, requests, "requesters") == [stranger.username, friend.username]
    assert await listed(friend, "/v1/accounts/me/sentRequests", "requested") == [shy.username]

    await shy.call("POST", f"{me}:acceptFollow", {})
    await shy.call("POST", f"/v1/accounts/{stranger.account_id}:declineFollow", {})
    assert await listed(friend, f"{hers}/followers", "followers") == [friend.username]
    assert await listed(friend, f"{me}/following", "followees") == [shy.username]
    with pytest.raises(ApiError) as refused:
        await stranger.call("GET", f"{hers}/followers")
    assert (refused.value.status, refused.value.reason) == (403, "ACCOUNT_PRIVATE")
    counts = await stranger.call("GET", f"{hers}/followCounts")
    assert counts == {"followers": "1", "followees": "0"}

    await friend.call("POST", f"{hers}:mute", {})
    assert await listed(friend, "/v1/accounts/me/mutes", "muted") == [shy.username]
    asked = [shy.account_id, stranger.account_id]
    answer = await friend.call("GET", "/v1/relationships:batchGet", accountIds=asked)
    relations = [
        {name for name, value in one.items() if value is True} for one in answer["relationships"]
    ]
    assert relations == [{"follows", "mutes", "private"}, set()]
    await friend.call("POST", f"{hers}:unmute", {})

    await shy.call("POST", f"{me}:removeFollower", {})
    await shy.call("POST", f"{me}:block", {})
    assert await listed(shy, "/v1/accounts/me/blocks", "blocked") == [friend.username]
    with pytest.raises(ApiError) as refused:
        await friend.call("POST", f"{hers}:follow", {})
    assert (refused.value.status, refused.value.reason) == (404, "ACCOUNT_UNKNOWN")
    await shy.call("POST", f"{me}:unblock", {})
    await friend.call("POST", f"{hers}:follow", {})
    await friend.call("POST", f"{hers}:unfollow", {})
    assert await listed(shy, requests, "requesters") == []
