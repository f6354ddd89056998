"""The event handlers of fan-out.

Events arrive at least once, possibly late, and in any order across topics. So every handler is
idempotent: it reads the current state from the service that owns it, applies it, and reads it
again. If the state has changed, the handler repeats. After concurrent handlers, the last one to
finish has applied the current state.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum

from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1.events_pb2 import CelebrityChanged, FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode, FollowCheck
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated

from services.chassis import context
from services.chassis.telemetry import logs
from services.domain.post_cache import PostCache
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.fanout.peers import Peers, Recent, is_pulled
from services.fanout.store import Chunk, FanoutKind, FanoutStore
from services.fanout.walk import Step, Walks

_log = logs.logger(__name__)

_MAX_ATTEMPTS = 20
"""How often a relation is applied to a timeline that has a newer version, or while the relation
keeps changing. After that, the timeline is dropped, and the next read rebuilds it."""

CHUNKS_AT_A_TIME = 8
"""Maximum number of chunks that one process handles concurrently."""

_CHANGING = (AudienceMode.AUDIENCE_MODE_PROMOTING, AudienceMode.AUDIENCE_MODE_DEMOTING)


class Events:
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
        # No check first: nearly every post still exists when its event arrives.
        await self._update_timelines(event.author_id, event.post_id, visible=True)

    async def on_post_changed(self, event: PostChanged) -> None:
        """Removes a post from timelines and cache, or restores it."""
        visible = await self._peers.is_visible(event.author_id, event.post_id)
        await self._update_cache(event.post_id, visible=visible)
        await self._update_timelines(event.author_id, event.post_id, visible=visible)

    async def on_follow_changed(self, event: FollowChanged) -> None:
        """Adds an author's posts to a reader's feed, removes them, or switches push and pull."""
        reader_id, author_id = event.follower_id, event.followee_id
        if not await self._homes.exists(reader_id):
            # A timeline built from now on includes the change, which precedes its event.
            return
        check = await self._peers.check(reader_id, author_id)
        for _ in range(_MAX_ATTEMPTS):
            applied = await self._apply(reader_id, author_id, check)
            # The second check also detects a mode change whose fan-out did not include this follow.
            # It does not compare versions: any other change in between has its own event, which is
            # handled after this one.
            before, check = check, await self._peers.check(reader_id, author_id)
            if applied and _feed_state(check) == _feed_state(before):
                return
        # The cache may be permanently ahead of graph, if graph's database was restored from a
        # backup.
        _log.warning("timeline.dropped", reader_id=reader_id, version=check.version)
        await self._homes.drop(reader_id)

    async def on_celebrity_changed(self, event: CelebrityChanged) -> None:
        """Begins the fan-out that makes all followers pull an account's posts, or stop pulling."""
        audience = await self._peers.audience(event.account_id)
        if audience.mode in _CHANGING:
            await self._store.begin(
                context.current().event,
                FanoutKind.MODE,
                event.account_id,
                audience.change_id,
                followers=audience.followers,
                bounds=audience.bounds,
            )

    async def _update_timelines(self, author_id: int, post_id: int, *, visible: bool) -> None:
        while True:
            await self._apply_post(author_id, post_id, visible=visible)
            before, visible = visible, await self._peers.is_visible(author_id, post_id)
            if visible == before:
                return
            await self._update_cache(post_id, visible=visible)

    async def _apply_post(self, author_id: int, post_id: int, *, visible: bool) -> None:
        """Pushes a post to the followers' timelines, or retracts it.

        When an author is demoted from pull to push, readers still pull copies of the author's
        timeline that are up to a second old. So each push includes the author's posts of the last
        seconds: otherwise feeds would miss posts before the first pushed one.

        If an author's posts are pulled, a post costs two writes. Followers' timelines may still
        contain a post pushed earlier; it is not retracted from them, because hydration omits it.
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
            # Process the first chunk here, while the events of the other chunks are delivered.
            until, *others = audience.bounds
            await self._store.begin(
                context.current().event,
                FanoutKind.POST,
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

    async def _update_cache(self, post_id: int, *, visible: bool) -> None:
        """Removes a visible post from the cache, so that it is fetched again, or hides a post.

        A post may become visible again before it is hidden here. So callers must check the
        visibility afterwards, and call this again if it has changed.
        """
        if visible:
            await self._posts.forget([post_id])
        else:
            await self._posts.withdraw([post_id])

    async def _apply(self, reader_id: int, author_id: int, check: FollowCheck) -> bool:
        """Updates a reader's timeline; returns False if the timeline has a newer version."""
        if not check.follows or check.muted:
            return await self._homes.hide(reader_id, author_id, check.version)
        if is_pulled(check.mode):
            return await self._homes.pull(reader_id, author_id, check.version)
        # Push first, so that posts that the feed has pulled so far never disappear from it.
        recent = await self._peers.recent(author_id)
        await self._homes.push([reader_id], recent.post_ids, complete_from=recent.complete_from)
        return await self._homes.show(reader_id, author_id, check.version)


def _feed_state(check: FollowCheck) -> tuple[bool, bool, AudienceMode.ValueType]:
    return check.follows, check.muted, check.mode


class _Effect(StrEnum):
    """The change that a chunk makes to each follower's timeline."""

    PUSH = "PUSH"
    RETRACT = "RETRACT"
    PULL = "PULL"
    UNPULL = "UNPULL"


class Chunks:
    """Applies the current state to the feeds of a chunk's followers.

    Chunks of different fan-outs of one account may run concurrently, for example when a post is
    deleted while it is still being pushed. So each chunk checks the state again at its end, and
    restarts if the state has changed. The last chunk to finish has applied the current state.
    """

    def __init__(
        self, timelines: HomeTimelines, peers: Peers, walks: Walks, store: FanoutStore
    ) -> None:
        self._timelines = timelines
        self._peers = peers
        self._walks = walks
        self._store = store

    async def on_chunk_ready(self, event: ChunkReady) -> None:
        chunk = await self._store.chunk(event.fanout_id, event.chunk)
        if chunk is None:
            return
        if not chunk.done:
            await self._update(chunk)
        if chunk.kind == FanoutKind.MODE:
            await self._finish_change(chunk.account_id)

    async def _update(self, chunk: Chunk) -> None:
        effect = await self._current_effect(chunk)
        if effect == chunk.effect:
            after, before = chunk.position, chunk.reached
        else:
            after, before = chunk.after_id, 0
        while True:
            reached = before + await self._apply(effect, chunk, after, before)
            current = await self._current_effect(chunk)
            if current is effect:
                break
            effect, after, before = current, chunk.after_id, 0
        await self._store.finish_chunk(chunk, reached=reached)

    async def _current_effect(self, chunk: Chunk) -> _Effect:
        if chunk.kind == FanoutKind.POST:
            visible = await self._peers.is_visible(chunk.account_id, chunk.subject_id)
            return _Effect.PUSH if visible else _Effect.RETRACT
        pulled = is_pulled(await self._peers.mode(chunk.account_id))
        return _Effect.PULL if pulled else _Effect.UNPULL

    async def _apply(self, effect: _Effect, chunk: Chunk, after: int, before: int) -> int:
        step, entries = await self._step(effect, chunk)

        async def save_progress(position: int, reached: int) -> None:
            await self._store.save_progress(
                chunk, position=position, effect=effect, reached=before + reached
            )

        return await self._walks.walk(
            chunk.account_id,
            step,
            after=after,
            until=chunk.until_id,
            entries=entries,
            save_progress=save_progress,
        )

    async def _step(self, effect: _Effect, chunk: Chunk) -> tuple[Step, int]:
        """Returns the step for each batch, and how many entries it adds to each feed."""
        author_id = chunk.account_id
        post_ids: Sequence[int] = [chunk.subject_id]
        match effect:
            case _Effect.PUSH:
                if await self._peers.mode(author_id) == AudienceMode.AUDIENCE_MODE_DEMOTING:
                    # See Events._apply_post.
                    post_ids = await self._peers.with_latest(author_id, chunk.subject_id)
                return lambda readers: self._timelines.push(readers, post_ids), len(post_ids)
            case _Effect.RETRACT:
                return lambda readers: self._timelines.retract(readers, post_ids), 1
            case _Effect.PULL:
                return lambda readers: self._timelines.pull_all(readers, author_id), 1
            case _Effect.UNPULL:
                # Later posts are pushed by their own events.
                recent = await self._peers.recent(author_id)
                return lambda readers: self._unpull(readers, author_id, recent), len(
                    recent.post_ids
                )

    async def _unpull(self, readers: Sequence[int], author_id: int, recent: Recent) -> None:
        # Push first, so that the posts never disappear from a feed.
        await self._timelines.push(readers, recent.post_ids, complete_from=recent.complete_from)
        await self._timelines.unpull_all(readers, author_id)

    async def _finish_change(self, account_id: int) -> None:
        """Notifies graph that a mode change is complete, once all its chunks are done.

        If this fails, the last chunk's event is redelivered.
        """
        change_id = await self._store.completed_change(account_id)
        if change_id is not None:
            await self._peers.finish_mode_change(account_id, change_id)
            await self._store.finish_changes(account_id, change_id)
