"""Clients cannot set the internal headers that the gateway sends to services."""

import pytest


@pytest.fixture
async def two(person):
    return await person().sign_up(), await person().sign_up()


@pytest.mark.parametrize("header", ["x-photomesh-user-id", "X-Photomesh-User-Id"])
async def test_headers_cannot_set_the_identity_of_a_caller(http, two, header):
    ada, bob = two
    answer = await http.get(
        "/v1/accounts/me",
        headers={"authorization": f"Bearer {ada.token}", header: str(bob.account_id)},
    )
    assert answer.json()["account"]["accountId"] == str(ada.account_id)
    anonymous = await http.get("/v1/accounts/me", headers={header: str(bob.account_id)})
    assert anonymous.status_code == 401


async def test_headers_cannot_set_a_deadline_for_the_services(http, two):
    answer = await http.get(
        "/v1/feed",
        headers={
            "authorization": f"Bearer {two[0].token}",
            "x-envoy-expected-rq-timeout-ms": "0",
            "x-envoy-upstream-rq-timeout-ms": "1",
        },
    )
    assert answer.status_code == 200


async def test_empty_fields_are_present_in_responses(http, two):
    headers = {"authorization": f"Bearer {two[0].token}"}
    page = (await http.get("/v1/feed", headers=headers)).json()
    assert page == {"posts": [], "nextPageToken": "", "state": page["state"]}
