"""Compares the database with a model of the rules, sets in memory, under random operations."""

import os
import random

import pytest

from services.domain.errors import AccountUnknown
from services.graph.errors import FollowLimit, FollowRequestUnknown
from services.graph.store.lists import AccountList
from services.graph.store.relations import FollowState
from tests.graph.conftest import Graph

pytestmark = pytest.mark.prove

LIMIT = 3
STEPS = 60
ROUNDS = 1 + int(os.environ.get("PHOTOMESH_EXAMPLES", "0")) // 100

Pairs = set[tuple[int, int]]


class Model:
    """Follows, requests, blocks and mutes, each as pairs (actor, target)."""

    def __init__(self) -> None:
        self.follows: Pairs = set()
        self.requests: Pairs = set()
        self.blocks: Pairs = set()
        self.mutes: Pairs = set()
        self.left: Pairs = set()
        self.private: set[int] = set()

    def blocked(self, one: int, other: int) -> bool:
        return not self.blocks.isdisjoint({(one, other), (other, one)})

    def sees(self, one: int, other: int) -> bool:
        may = other not in self.private or (one, other) in self.follows
        return may and not self.blocked(one, other)

    def follow(self, one: int, other: int) -> FollowState:
        pair = one, other
        if self.blocked(*pair):
            raise AccountUnknown(other)
        if pair not in self.follows | self.requests:
            if sum(who == one for who, _ in self.follows | self.requests) >= LIMIT:
                raise FollowLimit(LIMIT)
            self.requests.add(pair)
        if pair in self.requests and other in self.private:
            return FollowState.REQUESTED
        self._connect(*pair)
        return FollowState.FOLLOWING

    def accept(self, one: int, other: int) -> None:
        if (other, one) in self.requests:
            self._connect(other, one)
        elif (other, one) not in self.follows:
            raise FollowRequestUnknown(other)

    def decline(self, one: int, other: int) -> None:
        self.requests.discard((other, one))

    def unfollow(self, one: int, other: int) -> None:
        self.requests.discard((one, other))
        self._disconnect(one, other)

    def remove_follower(self, one: int, other: int) -> None:
        self._disconnect(other, one)

    def block(self, one: int, other: int) -> None:
        self.blocks.add((one, other))
        self.unfollow(one, other)
        self.unfollow(other, one)

    def unblock(self, one: int, other: int) -> None:
        self.blocks.discard((one, other))

    def mute(self, one: int, other: int) -> None:
        if self.blocked(one, other):
            raise AccountUnknown(other)
        self.mutes.add((one, other))

    def unmute(self, one: int, other: int) -> None:
        self.mutes.discard((one, other))

    def _connect(self, one: int, other: int) -> None:
        self.requests.discard((one, other))
        self.left.discard((one, other))
        self.follows.add((one, other))

    def _disconnect(self, one: int, other: int) -> None:
        if (one, other) in self.follows:
            self.follows.remove((one, other))
            self.left.add((one, other))


METHODS = ["follow"] * 8 + ["accept"] * 4
METHODS += ["decline", "unfollow", "remove_follower", "block", "unblock", "mute", "unmute"]


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_database_agrees_with_the_model(graph: Graph, account, seed):
    rng = random.Random(seed)
    accounts = [account() for _ in range(5)]
    store, model = graph.limited(LIMIT), Model()
    for _ in range(STEPS):
        one, other = rng.sample(accounts, 2)
        if rng.random() < 0.1:
            private = rng.random() < 0.5
            await store.set_private(one, private)
            (model.private.add if private else model.private.discard)(one)
            continue
        method = rng.choice(METHODS)
        try:
            expected = getattr(model, method)(one, other)
        except (AccountUnknown, FollowLimit, FollowRequestUnknown) as refusal:
            with pytest.raises(type(refusal)):
                await getattr(store, method)(one, other)
        else:
            outcome = await getattr(store, method)(one, other)
            assert expected is None or outcome == expected

    assert await graph.edges() == model.follows
    assert await graph.requests() == model.requests
    assert await graph.blocks() == model.blocks
    assert await graph.mutes() == model.mutes
    for one in accounts:
        kept = sorted(pair[1] for pair in model.follows - model.mutes if pair[0] == one)
        hidden = sorted(pair[1] for pair in model.mutes | model.left if pair[0] == one)
        assert await graph.reading(one) == (kept, [], hidden)
        for relation in await store.between(one, accounts):
            if relation.other_id != one:
                assert relation.sees == model.sees(one, relation.other_id)
        for owner in accounts:
            page = await graph.lists.page(AccountList.FOLLOWERS, owner, one, before=None, limit=10)
            assert {position.account_id for position in page} == {
                who for who, whom in model.follows if whom == owner and not model.blocked(one, who)
            }
