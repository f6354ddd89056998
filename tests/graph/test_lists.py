"""Lists in a real database: newest first, no gaps between pages, and blocks are respected."""

from collections.abc import AsyncIterator

from services.graph.store.lists import AccountList
from tests.graph.conftest import Graph


async def every_page(
    graph: Graph, which: AccountList, owner: int, *, viewer: int | None = None, size: int = 3
) -> AsyncIterator[int]:
    before = None
    while True:
        page = await graph.lists.page(which, owner, viewer or owner, before=before, limit=size)
        for position in page:
            yield position.account_id
        if len(page) < size:
            return
        before = page[-1]


async def test_pages_are_newest_first_without_gap_or_repeat(graph: Graph, account):
    store = graph.stores[0]
    for which in AccountList:
        me = account()
        others = [account() for _ in range(7)]
        for other in others:
            await store.set_private(other, which is AccountList.SENT_REQUESTS)
        await store.set_private(me, which is AccountList.RECEIVED_REQUESTS)

        async def enter(other: int, me: int = me, which: AccountList = which) -> None:
            match which:
                case AccountList.FOLLOWERS | AccountList.RECEIVED_REQUESTS:
                    await store.follow(other, me)
                case AccountList.FOLLOWEES | AccountList.SENT_REQUESTS:
                    await store.follow(me, other)
                case AccountList.BLOCKS:
                    await store.block(me, other)
                case AccountList.MUTES:
                    await store.mute(me, other)

        for other in others[:6]:
            await enter(other)
        seen = []
        async for other in every_page(graph, which, me):
            seen.append(other)
            if len(seen) == 1:
                # Newer than the page that this reader has reached.
                await enter(others[6])

        assert seen == others[5::-1]
        assert [other async for other in every_page(graph, which, me)] == others[::-1]
        assert [other async for other in every_page(graph, which, account())] == []


async def test_follows_with_the_same_time_are_listed_once_each(graph: Graph, account):
    store, star = graph.stores[0], account()
    fans = [account() for _ in range(9)]
    for fan in fans:
        await store.follow(fan, star)
    await graph.rows("UPDATE followers SET create_time = '2026-03-01' RETURNING 1")

    seen = [fan async for fan in every_page(graph, AccountList.FOLLOWERS, star, size=2)]

    assert seen == sorted(fans, reverse=True)


async def test_lists_omit_accounts_that_block_the_viewer_or_are_blocked(graph: Graph, account):
    store, star, viewer = graph.stores[0], account(), account()
    fans = [account() for _ in range(8)]
    for fan in fans:
        await store.follow(fan, star)
    await store.block(viewer, fans[1])
    await store.block(fans[6], viewer)
    await store.block(fans[3], fans[4])

    seen = [fan async for fan in every_page(graph, AccountList.FOLLOWERS, star, viewer=viewer)]

    assert seen == [fan for fan in reversed(fans) if fan not in (fans[1], fans[6])]
    assert [other async for other in every_page(graph, AccountList.BLOCKS, viewer)] == [fans[1]]
