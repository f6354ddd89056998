"""Who the services take a caller for."""

import pytest


@pytest.fixture
async def two(person):
    return await person().sign_up(), await person().sign_up()


@pytest.mark.parametrize("header", ["x-photomesh-user-id", "X-Photomesh-User-Id"])
async def test_nobody_can_say_who_they_are(http, two, header):
    ada, bob = two
    answer = await http.get(
        "/v1/accounts/me",
        headers={"authorization": f"Bearer {ada.token}", header: str(bob.account_id)},
    )
    assert answer.json()["account"]["accountId"] == str(ada.account_id)
    anonymous = await http.get("/v1/accounts/me", headers={header: str(bob.account_id)})
    assert anonymous.status_code == 401


async def test_nobody_can_set_a_deadline_for_the_services(http, two):
    answer = await http.get(
        "/v1/feed",
        headers={
            "authorization": f"Bearer {two[0].token}",
            "x-envoy-expected-rq-timeout-ms": "0",
            "x-envoy-upstream-rq-timeout-ms": "1",
        },
    )
    assert answer.status_code == 200


async def test_fields_that_are_empty_are_printed(http, two):
    headers = {"authorization": f"Bearer {two[0].token}"}
    page = (await http.get("/v1/feed", headers=headers)).json()
    assert page == {"posts": [], "nextPageToken": "", "state": page["state"]}
