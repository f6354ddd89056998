from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import BadPageToken
from services.chassis.rpc.paging import PageTokens

TOKENS = PageTokens(b"a secret", "photomesh.feed.v1.FeedService.GetFeed")


@given(last_id=st.integers(0, 2**63 - 1), caller=st.integers(1, 2**63 - 1))
def test_a_token_opens_for_its_caller(last_id, caller):
    assert TOKENS.open(TOKENS.seal(last_id, caller), caller) == last_id


@given(
    last_time=st.datetimes(timezones=st.just(UTC)),
    last_id=st.integers(0, 2**63 - 1),
    caller=st.integers(1, 2**63 - 1),
)
def test_a_time_is_kept_to_the_microsecond(last_time, last_id, caller):
    token = TOKENS.seal_time(last_time, last_id, caller)

    assert TOKENS.open_time(token, caller) == (last_time, last_id)
    with pytest.raises(BadPageToken):
        TOKENS.open(token, caller)
    with pytest.raises(BadPageToken):
        TOKENS.open_time(TOKENS.seal(last_id, caller), caller)


@given(text=st.text())
def test_arbitrary_text_does_not_open(text):
    with pytest.raises(BadPageToken):
        TOKENS.open(text, 1)


@given(place=st.integers(0, 26), replacement=st.sampled_from("AQgwz09-_"))
def test_a_modified_token_does_not_open(place, replacement):
    token = TOKENS.seal(123_456, 1)
    changed = token[:place] + replacement + token[place + 1 :]
    if changed != token:
        with pytest.raises(BadPageToken):
            TOKENS.open(changed, 1)


@pytest.mark.parametrize(
    ("tokens", "caller"),
    [
        (TOKENS, 2),
        (PageTokens(b"a secret", "photomesh.feed.v1.FeedService.Other"), 1),
        (PageTokens(b"another secret", "photomesh.feed.v1.FeedService.GetFeed"), 1),
    ],
    ids=["another caller", "another method", "another key"],
)
def test_a_token_of_another_caller_method_or_key_does_not_open(tokens, caller):
    with pytest.raises(BadPageToken):
        tokens.open(TOKENS.seal(123_456, 1), caller)
