"""Relations in a real database: tables, counts and events always agree."""

import asyncio
import itertools
import os
import random
from contextlib import suppress

import pytest

from services.domain.errors import AccountUnknown
from services.graph.errors import FollowLimit, FollowRequestUnknown, MuteLimit
from services.graph.store.relations import FollowState, Loss, Relations
from tests.graph.conftest import LIMIT, Graph

pytestmark = pytest.mark.prove

FOLLOWING, REQUESTED = FollowState.FOLLOWING, FollowState.REQUESTED

CLICKS = int(os.environ.get("PHOTOMESH_EXAMPLES", "20"))


# -- Concurrency -------------------------------------------------------------------------------


async def test_tables_counts_and_events_agree_after_concurrent_changes(graph: Graph, account):
    """Many users make all kinds of changes; none fails, not even by a deadlock."""
    accounts = [account() for _ in range(7)]
    rng = random.Random(7)

    async def click(store: Relations) -> None:
        for _ in range(CLICKS):
            one, other = rng.sample(accounts, 2)
            change = rng.choice(
                [store.follow] * 6
                + [store.accept] * 3
                + [store.unfollow, store.remove_follower, store.decline]
                + [store.block, store.unblock, store.unblock, store.mute, store.unmute]
                + [lambda one, other: store.set_private(one, rng.random() < 0.5)]
            )
            with suppress(AccountUnknown, FollowRequestUnknown, FollowLimit):
                await change(one, other)

    await asyncio.gather(*(click(store) for store in graph.stores * 6))

    edges, requests = await graph.edges(), await graph.requests()
    blocked = {pair for one, other in await graph.blocks() for pair in [(one, other), (other, one)]}
    assert edges
    assert not edges & requests
    assert not blocked & (edges | requests)
    assert not await graph.departures() & edges
    # Each event reports one change of a follow or of a mute.
    mutes = await graph.mutes()
    events = await graph.events()
    for pair in itertools.permutations(accounts, 2):
        assert events[pair] % 2 == ((pair in edges) + (pair in mutes)) % 2
    for reader_id in accounts:
        changes = sum(count for (reader, _), count in events.items() if reader == reader_id)
        assert await graph.version(reader_id) == changes


async def test_mutual_blocks_at_the_same_time_do_not_deadlock(graph: Graph, account):
    pairs = [(account(), account()) for _ in range(10)]
    one_way, other_way = graph.stores
    for one, other in pairs:
        await one_way.follow(one, other)
        await one_way.follow(other, one)

    # PostgreSQL would find a deadlock and fail one of the two.
    await asyncio.gather(
        *(one_way.block(one, other) for one, other in pairs),
        *(other_way.block(other, one) for one, other in pairs),
    )

    assert await graph.edges() == set()
    assert len(await graph.blocks()) == 20


async def test_twenty_concurrent_identical_follows_are_one_change(graph: Graph, account):
    fan, star = account(), account()

    await asyncio.gather(*(store.follow(fan, star) for store in graph.stores * 10))
    assert await graph.edges() == {(fan, star)}
    assert await graph.events() == {(fan, star): 1}

    await asyncio.gather(*(store.unfollow(fan, star) for store in graph.stores * 10))
    assert await graph.edges() == set()
    assert await graph.events() == {(fan, star): 2}


async def test_the_limit_of_follows_is_exact_for_twenty_concurrent_follows(graph: Graph, account):
    store, fan = graph.stores[0], account()
    before = [account() for _ in range(LIMIT - 3)]
    for star in before:
        await store.follow(fan, star)

    wanted = [account() for _ in range(20)]
    # Requests count too, so accepting one never exceeds the limit.
    for shy in wanted[::2]:
        await store.set_private(shy, True)
    outcomes = await asyncio.gather(
        *(
            replica.follow(fan, star)
            for replica, star in zip(itertools.cycle(graph.stores), wanted)
        ),
        return_exceptions=True,
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, FollowLimit)]
    assert len(refused) == 17
    waits = await graph.requests()
    edges = await graph.edges()
    assert len(edges) + len(waits) == LIMIT
    for _, shy in waits:
        await store.accept(shy, fan)
    assert await graph.edges() == edges | waits

    # A repeated follow is allowed at the limit, and an unfollow makes room for another.
    await store.follow(fan, before[0])
    with pytest.raises(FollowLimit):
        await store.follow(fan, account())
    await store.unfollow(fan, before[0])
    await store.follow(fan, account())


async def test_the_limit_of_mutes_is_exact(graph: Graph, account):
    store, muter = graph.stores[0], account()
    muted = [account() for _ in range(LIMIT + 5)]
    outcomes = await asyncio.gather(
        *(replica.mute(muter, each) for replica, each in zip(itertools.cycle(graph.stores), muted)),
        return_exceptions=True,
    )
    refused = [
        each
        for each, outcome in zip(muted, outcomes, strict=True)
        if isinstance(outcome, MuteLimit)
    ]
    there = [each for each in muted if each not in refused]
    assert (len(there), len(refused)) == (LIMIT, 5)

    # A repeated mute is allowed at the limit, and an unmute makes room for another.
    await store.mute(muter, there[0])
    await store.unmute(muter, there[0])
    await store.mute(muter, refused[0])
    with pytest.raises(MuteLimit):
        await store.mute(muter, there[0])


# -- Requests ----------------------------------------------------------------------------------


async def test_a_follow_of_a_private_account_needs_its_consent(graph: Graph, account):
    store, fan, shy = graph.stores[0], account(), account()
    await store.set_private(shy, True)

    for _ in range(2):
        assert await store.follow(fan, shy) is REQUESTED
    assert (await graph.requests(), await graph.edges()) == ({(fan, shy)}, set())
    # A request changes nothing for readers.
    assert (await graph.version(fan), await graph.events()) == (0, {})

    for _ in range(2):
        await store.accept(shy, fan)
    assert (await graph.requests(), await graph.edges()) == (set(), {(fan, shy)})
    assert (await graph.version(fan), await graph.events()) == (1, {(fan, shy): 1})
    assert await store.follow(fan, shy) is FOLLOWING


async def test_either_side_can_end_a_request(graph: Graph, account):
    store, fan, shy = graph.stores[0], account(), account()
    await store.set_private(shy, True)

    for end in (lambda: store.decline(shy, fan), lambda: store.unfollow(fan, shy)):
        await store.follow(fan, shy)
        for _ in range(2):
            await end()
        assert await graph.requests() == set()
        with pytest.raises(FollowRequestUnknown):
            await store.accept(shy, fan)
    assert await graph.edges() == set()


async def test_requests_stay_pending_when_the_account_becomes_public(graph: Graph, account):
    store, fan, other, shy = graph.stores[0], account(), account(), account()
    await store.set_private(shy, True)
    await store.follow(fan, shy)
    await store.follow(other, shy)

    await store.set_private(shy, False)
    assert await graph.requests() == {(fan, shy), (other, shy)}
    assert await store.follow(fan, shy) is FOLLOWING
    await store.accept(shy, other)

    assert (await graph.requests(), await graph.edges()) == (set(), {(fan, shy), (other, shy)})


async def test_followers_stay_when_the_account_becomes_private(graph: Graph, account):
    store, fan, shy = graph.stores[0], account(), account()
    await store.follow(fan, shy)

    await store.set_private(shy, True)

    assert await store.is_private(shy)
    assert not await store.is_private(fan)
    assert await graph.edges() == {(fan, shy)}
    assert await store.follow(fan, shy) is FOLLOWING


# -- Losses ------------------------------------------------------------------------------------


async def test_a_block_removes_all_relations_of_two_accounts(graph: Graph, account):
    store, one, other, shy = graph.stores[0], account(), account(), account()
    await store.set_private(shy, True)
    await store.follow(one, other)
    await store.follow(other, one)
    await store.follow(one, shy)

    both = {Loss(one, other, version=2), Loss(other, one, version=2)}
    assert set(await store.block(one, other)) == both
    # A client that received no response retries, and the lost authors are hidden again.
    assert set(await store.block(one, other)) == both
    assert await store.block(shy, one) == []
    assert (await graph.requests(), await graph.edges()) == (set(), set())
    assert await graph.events() == {(one, other): 2, (other, one): 2}

    for change in (store.follow, store.mute):
        for pair in [(one, other), (other, one)]:
            with pytest.raises(AccountUnknown):
                await change(*pair)

    await store.unblock(one, other)
    assert await store.follow(other, one) is FOLLOWING
    assert await graph.edges() == {(other, one)}


async def test_lost_authors_stay_hidden_for_an_hour(graph: Graph, account):
    store, fan = graph.stores[0], account()
    left, removed, muted, kept, back = stars = sorted(account() for _ in range(5))
    for star in stars:
        await store.follow(fan, star)

    assert await store.unfollow(fan, left) == [Loss(fan, left, version=6)]
    assert await store.remove_follower(removed, fan) == [Loss(fan, removed, version=7)]
    assert await store.mute(fan, muted) == [Loss(fan, muted, version=8)]
    await store.unfollow(fan, back)
    await store.follow(fan, back)

    assert await graph.reading(fan) == ([kept, back], [], [left, removed, muted])
    assert (await store.reading(fan)).version == 10

    # The next departure deletes older ones; muted authors stay hidden.
    await graph.rows(
        "UPDATE departures SET leave_time = leave_time - interval '61 minutes' RETURNING 1"
    )
    assert await graph.reading(fan) == ([kept, back], [], [muted])
    assert await store.unfollow(fan, left) == []
    await store.unfollow(fan, kept)
    assert await graph.departures() == {(fan, kept)}

    await store.unmute(fan, muted)
    assert await graph.reading(fan) == ([muted, back], [], [kept])


async def test_muted_authors_are_hidden_before_and_during_a_follow(graph: Graph, account):
    """The author's posts can reach the follower's feed as soon as the follow is committed."""
    store, fan, star = graph.stores[0], account(), account()

    assert await store.mute(fan, star) == [Loss(fan, star, version=1)]
    assert await graph.reading(fan) == ([], [], [star])
    await store.follow(fan, star)

    assert await graph.reading(fan) == ([], [], [star])
    [check] = await store.check([(fan, star)])
    assert (check.follows, check.muted, check.version) == (True, True, 2)


async def test_undoing_a_relation_that_does_not_exist_changes_nothing(graph: Graph, account):
    store, one, other = graph.stores[0], account(), account()

    assert await store.unfollow(one, other) == []
    assert await store.remove_follower(one, other) == []
    await store.decline(one, other)
    await store.unblock(one, other)
    await store.unmute(one, other)
    with pytest.raises(FollowRequestUnknown):
        await store.accept(one, other)

    assert await graph.rows("SELECT * FROM followee_counts") == []
    assert await graph.events() == {}


# -- Queries -----------------------------------------------------------------------------------


async def test_follow_checks_are_in_the_order_of_the_request(graph: Graph, account):
    store = graph.stores[0]
    accounts = [account() for _ in range(6)]
    rng = random.Random(3)
    pairs = [(one, other) for one in accounts for other in accounts if one != other]
    edges = set(rng.sample(pairs, 12))
    mutes = set(rng.sample(pairs, 6))
    for pair in edges:
        await store.follow(*pair)
    for pair in mutes:
        await store.mute(*pair)

    asked = rng.choices(pairs, k=100)
    checks = await store.check(asked)

    assert [check.follows for check in checks] == [pair in edges for pair in asked]
    assert [check.muted for check in checks] == [pair in mutes for pair in asked]
    changes = [sum(pair[0] == reader for pair in [*edges, *mutes]) for reader, _ in asked]
    assert [check.version for check in checks] == changes


async def test_relations_reflect_all_changes(graph: Graph, account):
    store, me = graph.stores[0], account()
    others = [account() for _ in range(8)]
    followed, asked, fan, asker, blocked, blocker, muted, stranger = others
    for shy in (me, asked):
        await store.set_private(shy, True)
    await store.follow(me, followed)
    await store.follow(me, asked)
    await store.follow(fan, me)
    await store.accept(me, fan)
    await store.follow(asker, me)
    await store.block(me, blocked)
    await store.block(blocker, me)
    await store.mute(me, muted)

    relations = await store.between(me, [*others, stranger])

    facts = [
        {name for name, value in vars(relation).items() if value is True} for relation in relations
    ]
    assert facts == [
        {"follows"},
        {"requested", "private"},
        {"followed_by"},
        {"requested_by"},
        {"blocks"},
        {"blocked_by"},
        {"mutes"},
        set(),
        set(),
    ]
    assert [relation.sees for relation in relations] == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        True,
    ]


async def test_followees_are_counted(graph: Graph, account):
    store, fan = graph.stores[0], account()
    for _ in range(3):
        await store.follow(fan, account())

    assert await store.count_followees(fan) == 3
    assert await store.count_followees(account()) == 0
