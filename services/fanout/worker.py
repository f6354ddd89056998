"""What fan-out does with each event.

Events come at least once, late, and in any order between topics. So every effect is idempotent,
each handler asks who owns the matter what holds now, and asks once more when it is done: if
something else holds by then, it begins anew. Of several that are at it at the same time, whoever
comes last leaves what holds.
"""

import asyncio
from collections.abc import Sequence

from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode, FollowCheck
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from services.common import context, logs
from services.common.post_cache import PostCache
from services.common.timelines import AuthorTimelines, HomeTimelines
from services.fanout.peers import Peers, is_pulled
from services.fanout.store import FanoutStore, Kind
from services.fanout.walk import Walks

_log = logs.logger(__name__)

_TRIES = 20
"""How often a changed relation is applied to a timeline that is ahead of what graph answers. Then
the timeline is dropped, and its next reader rebuilds it."""

_CHANGING = (AudienceMode.AUDIENCE_MODE_PROMOTING, AudienceMode.AUDIENCE_MODE_DEMOTING)


class Fanout:
    """Keeps timelines and cached posts in step with posts, follows and modes."""

    def __init__(
        self,
        homes: HomeTimelines,
        authors: AuthorTimelines,
        posts: PostCache,
        peers: Peers,
        walks: Walks,
        store: FanoutStore,
    ) -> None:
        self._homes = homes
        self._authors = authors
        self._posts = posts
        self._peers = peers
        self._walks = walks
        self._store = store

    async def on_post_created(self, event: PostCreated) -> None:
        """Brings a post that is new to all who are to have it."""
        # Without a question first: nearly every post is still there when its event comes.
        await self._bring_in_line(event.author_id, event.post_id, visible=True)

    async def on_post_changed(self, event: PostChanged) -> None:
        """Takes a post away from all who have it, or brings it to them again."""
        visible = await self._peers.is_visible(event.author_id, event.post_id)
        await self._change_copies(event.post_id, visible=visible)
        await self._bring_in_line(event.author_id, event.post_id, visible=visible)

    async def on_follow_changed(self, event: FollowChanged) -> None:
        """Makes a reader get an author's posts, or no more, or by another way."""
        reader_id, author_id = event.follower_id, event.followee_id
        if not await self._homes.exists(reader_id):
            # Whoever builds it from now on reads what holds, which was committed before the event.
            return
        check = await self._peers.check(reader_id, author_id)
        for _ in range(_TRIES):
            shown = await self._apply(reader_id, author_id, check)
            # A follow that was not yet among the followers when the author's mode began to change
            # sees the new mode here. The version is no matter: whatever else changed between the
            # two has an event of its own, which is handled after this one.
            before, check = check, await self._peers.check(reader_id, author_id)
            if shown and _essence(check) == _essence(before):
                return
        # Relations that change all the time end. A cache that is ahead of graph, since graph's
        # database was restored from a backup, stays so.
        _log.warning("timeline.dropped", reader_id=reader_id, version=check.version)
        await self._homes.drop(reader_id)

    async def on_celebrity_changed(self, event: CelebrityChanged) -> None:
        """Has all followers pull an account's posts from now on, or no more."""
        audience = await self._peers.audience(event.account_id)
        if audience.mode in _CHANGING:
            await self._store.begin(
                context.current().event,
                Kind.MODE,
                event.account_id,
                audience.change_id,
                followers=audience.followers,
                bounds=audience.bounds,
            )

    async def _bring_in_line(self, author_id: int, post_id: int, *, visible: bool) -> None:
        while True:
            await self._apply_post(author_id, post_id, visible=visible)
            before, visible = visible, await self._peers.is_visible(author_id, post_id)
            if visible == before:
                return
            await self._change_copies(post_id, visible=visible)

    async def _apply_post(self, author_id: int, post_id: int, *, visible: bool) -> None:
        """Pushes a post, or retracts it.

        When an author's posts are pushed again, while readers still pull copies of the author's
        timeline that are a second old, those of this second go with each: else the first to be
        pushed would stand behind a gap. Of an author whose posts are pulled that costs two writes.
        What was pushed before they were is not retracted from feeds then: nobody is shown it, for
        whoever reads asks post.
        """
        change = self._homes.push if visible else self._homes.retract
        change_own = self._authors.push if visible else self._authors.retract
        audience, *_ = await asyncio.gather(
            self._peers.audience(author_id),
            change([author_id], [post_id]),
            change_own([author_id], [post_id]),
        )
        if audience.mode == AudienceMode.AUDIENCE_MODE_PULLED:
            return
        until = 0
        if audience.bounds:
            # The first part is gone through at once, while word of the others travels.
            until, *others = audience.bounds
            await self._store.begin(
                context.current().event,
                Kind.POST,
                author_id,
                post_id,
                followers=audience.followers - self._peers.chunk_size,
                bounds=others,
                after=until,
            )
        post_ids: Sequence[int] = [post_id]
        if visible and audience.mode == AudienceMode.AUDIENCE_MODE_DEMOTING:
            post_ids = await self._peers.with_latest(author_id, post_id)
        await self._walks.walk(
            author_id,
            lambda readers: change(readers, post_ids),
            until=until,
            entries=len(post_ids),
        )

    async def _change_copies(self, post_id: int, *, visible: bool) -> None:
        """Has readers ask anew for a post, or be told that there is none.

        A withdrawal may come after the post was shown again. So look afterwards, and if it was,
        call this once more.
        """
        if visible:
            await self._posts.forget([post_id])
        else:
            await self._posts.withdraw([post_id])

    async def _apply(self, reader_id: int, author_id: int, check: FollowCheck) -> bool:
        """Brings a reader's timeline in line; False: what was checked is out of date."""
        if not check.follows or check.muted:
            return await self._homes.hide(reader_id, author_id, check.version)
        if is_pulled(check.mode):
            return await self._homes.pull(reader_id, author_id, check.version)
        # In this order the feed is never without posts that it has pulled so far.
        recent = await self._peers.recent(author_id)
        await self._homes.push([reader_id], recent.post_ids, complete_from=recent.complete_from)
        return await self._homes.show(reader_id, author_id, check.version)


def _essence(check: FollowCheck) -> tuple[bool, bool, AudienceMode.ValueType]:
    return check.follows, check.muted, check.mode
