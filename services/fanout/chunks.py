"""Processes the chunks of a large audience."""

from collections.abc import Sequence
from enum import StrEnum

from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode

from services.domain.timelines import HomeTimelines
from services.fanout.peers import Peers, Recent, is_pulled
from services.fanout.store import Chunk, FanoutStore, Kind
from services.fanout.walk import Step, Walks

AT_A_TIME = 8
"""Maximum number of chunks that one process handles concurrently."""


class _Effect(StrEnum):
    """What is done to each feed."""

    PUSH = "PUSH"
    RETRACT = "RETRACT"
    PULL = "PULL"
    UNPULL = "UNPULL"


class Chunks:
    """Applies the current state to the feeds of a chunk's followers.

    Chunks of different fan-outs of one account may run concurrently: for example, when a post is
    deleted while it is still being pushed. So each chunk checks the state again when it is done,
    and starts over if the state has changed. The last one leaves the current state.
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
            await self._bring_in_line(chunk)
        if chunk.kind == Kind.MODE:
            await self._finish_change(chunk.account_id)

    async def _bring_in_line(self, chunk: Chunk) -> None:
        effect = await self._due(chunk)
        if effect == chunk.effect:
            after, before = chunk.position, chunk.reached
        else:
            after, before = chunk.after_id, 0
        while True:
            reached = before + await self._apply(effect, chunk, after, before)
            due = await self._due(chunk)
            if due is effect:
                break
            effect, after, before = due, chunk.after_id, 0
        await self._store.finish_chunk(chunk, reached=reached)

    async def _due(self, chunk: Chunk) -> _Effect:
        if chunk.kind == Kind.POST:
            visible = await self._peers.is_visible(chunk.account_id, chunk.subject_id)
            return _Effect.PUSH if visible else _Effect.RETRACT
        pulled = is_pulled(await self._peers.mode(chunk.account_id))
        return _Effect.PULL if pulled else _Effect.UNPULL

    async def _apply(self, effect: _Effect, chunk: Chunk, after: int, before: int) -> int:
        step, entries = await self._step(effect, chunk)

        async def keep(position: int, reached: int) -> None:
            await self._store.keep(
                chunk, position=position, effect=effect, reached=before + reached
            )

        return await self._walks.walk(
            chunk.account_id, step, after=after, until=chunk.until_id, entries=entries, keep=keep
        )

    async def _step(self, effect: _Effect, chunk: Chunk) -> tuple[Step, int]:
        """Returns the step for each batch, and how many entries it adds to each feed."""
        author_id = chunk.account_id
        post_ids: Sequence[int] = [chunk.subject_id]
        match effect:
            case _Effect.PUSH:
                if await self._peers.mode(author_id) == AudienceMode.AUDIENCE_MODE_DEMOTING:
                    # As Fanout does for small audiences.
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
        # In this order no feed is ever without the posts.
        await self._timelines.push(readers, recent.post_ids, complete_from=recent.complete_from)
        await self._timelines.unpull_all(readers, author_id)

    async def _finish_change(self, account_id: int) -> None:
        """Notifies graph that a change of mode has ended, once all its chunks are done.

        The last chunk's event is redelivered until graph is notified.
        """
        change_id = await self._store.ended_change(account_id)
        if change_id is not None:
            await self._peers.finish_mode_change(account_id, change_id)
            await self._store.finish_changes(account_id, change_id)
