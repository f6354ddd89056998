"""The event handlers of fan-out.

Events arrive at least once, late, and in any order across topics. So every effect is idempotent:
each handler reads the current state from the service that owns it, applies it, and reads it again.
If the state has changed, the handler repeats. Of concurrent handlers, the last one leaves the
current state.
"""

import asyncio
from collections.abc import Sequence

from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode, FollowCheck
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from services.chassis import context
from services.chassis.telemetry import logs
from services.domain.post_cache import PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.fanout.peers import Peers, is_pulled
from services.fanout.store import FanoutStore, Kind
from services.fanout.walk import Walks

_log = logs.logger(__name__)

_TRIES = 20
"""How often a changed relation is applied to a timeline that is ahead of graph's answer. After that
the timeline is dropped, and its next reader rebuilds it."""

_CHANGING = (AudienceMode.AUDIENCE_MODE_PROMOTING, AudienceMode.AUDIENCE_MODE_DEMOTING)


class Fanout:
    """Updates timelines and cached posts when posts, follows and modes change."""

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
        """Pushes a new post to the timelines that it belongs to."""
        # Without a check first: nearly every post still exists when its event arrives.
        await self._bring_in_line(event.author_id, event.post_id, visible=True)

    async def on_post_changed(self, event: PostChanged) -> None:
        """Removes a post from timelines and cache, or restores it."""
        visible = await self._peers.is_visible(event.author_id, event.post_id)
        await self._change_copies(event.post_id, visible=visible)
        await self._bring_in_line(event.author_id, event.post_id, visible=visible)

    async def on_follow_changed(self, event: FollowChanged) -> None:
        """Adds an author's posts to a reader's feed, removes them, or switches push and pull."""
        reader_id, author_id = event.follower_id, event.followee_id
        if not await self._homes.exists(reader_id):
            # A timeline that is built from now on includes the change, committed before the event.
            return
        check = await self._peers.check(reader_id, author_id)
        for _ in range(_TRIES):
            shown = await self._apply(reader_id, author_id, check)
            # The second check also sees a new mode, if this follow was added too late for the
            # fan-out of the mode's change. Versions are not compared: any other change in between
            # has an event of its own, which is handled after this one.
            before, check = check, await self._peers.check(reader_id, author_id)
            if shown and _essence(check) == _essence(before):
                return
        # Relations that keep changing stop at some point. A cache that is ahead of graph, because
        # graph's database was restored from a backup, stays ahead.
        _log.warning("timeline.dropped", reader_id=reader_id, version=check.version)
        await self._homes.drop(reader_id)

    async def on_celebrity_changed(self, event: CelebrityChanged) -> None:
        """Makes all followers pull an account's posts, or stop doing so."""
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
        """Pushes a post to the followers' timelines, or retracts it.

        When an author's posts are pushed again, readers still pull copies of the author's timeline
        that are up to a second old. So each push includes the author's posts of the last seconds:
        otherwise the first post pushed would follow a gap.

        If an author's posts are pulled, a post costs two writes. Followers' feeds may still hold it
        from before; it is not retracted from there, because readers find it hidden when they fetch
        it.
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
            # Process the first chunk at once, while the events of the others are delivered.
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
        """Makes readers fetch a post again, or hides it from them.

        A withdrawal may arrive after the post was shown again. So callers must check afterwards,
        and call this again if the post's visibility has changed.
        """
        if visible:
            await self._posts.forget([post_id])
        else:
            await self._posts.withdraw([post_id])

    async def _apply(self, reader_id: int, author_id: int, check: FollowCheck) -> bool:
        """Updates a reader's timeline; returns False if the check is outdated."""
        if not check.follows or check.muted:
            return await self._homes.hide(reader_id, author_id, check.version)
        if is_pulled(check.mode):
            return await self._homes.pull(reader_id, author_id, check.version)
        # In this order the feed always contains the posts that it has pulled so far.
        recent = await self._peers.recent(author_id)
        await self._homes.push([reader_id], recent.post_ids, complete_from=recent.complete_from)
        return await self._homes.show(reader_id, author_id, check.version)


def _essence(check: FollowCheck) -> tuple[bool, bool, AudienceMode.ValueType]:
    return check.follows, check.muted, check.mode
