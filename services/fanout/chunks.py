"""What is done for one chunk of a large audience."""

from collections.abc import Sequence
from enum import StrEnum

from photomesh.fanout.v1.events_pb2 import ChunkReady
from photomesh.graph.v1.graph_internal_service_pb2 import AudienceMode

from services.common.timelines import HomeTimelines
from services.fanout.peers import Peers, Recent, is_pulled
from services.fanout.store import Chunk, FanoutStore, Kind
from services.fanout.walk import Step, Walks

AT_A_TIME = 8
"""How many chunks one process goes through at a time."""


class _Effect(StrEnum):
    """What brings feeds in line."""

    PUSH = "PUSH"
    RETRACT = "RETRACT"
    PULL = "PULL"
    UNPULL = "UNPULL"


class Chunks:
    """Brings the feeds of a chunk's followers in line with what holds now.

    Chunks of different fan-outs of one account may run side by side: of a post that is deleted
    while it is still being pushed, say. So each looks once more when it is through, and if it no
    longer holds what it went by, goes through again. Whoever comes last leaves what holds.
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
        """Returns what to do for each batch, and how many entries that adds to each feed."""
        author_id = chunk.account_id
        post_ids: Sequence[int] = [chunk.subject_id]
        match effect:
            case _Effect.PUSH:
                if await self._peers.mode(author_id) == AudienceMode.AUDIENCE_MODE_DEMOTING:
                    # As Fanout does with the posts of authors whom fewer follow.
                    post_ids = await self._peers.with_latest(author_id, chunk.subject_id)
                return lambda readers: self._timelines.push(readers, post_ids), len(post_ids)
            case _Effect.RETRACT:
                return lambda readers: self._timelines.retract(readers, post_ids), 1
            case _Effect.PULL:
                return lambda readers: self._timelines.pull_all(readers, author_id), 1
            case _Effect.UNPULL:
                # Posts that are made from now on are pushed by their own events.
                recent = await self._peers.recent(author_id)
                return lambda readers: self._unpull(readers, author_id, recent), len(
                    recent.post_ids
                )

    async def _unpull(self, readers: Sequence[int], author_id: int, recent: Recent) -> None:
        # In this order no feed is ever without the posts.
        await self._timelines.push(readers, recent.post_ids, complete_from=recent.complete_from)
        await self._timelines.unpull_all(readers, author_id)

    async def _finish_change(self, account_id: int) -> None:
        """Tells graph that an account's change of mode is done, once all of its chunks are.

        The event of the last one comes again until graph was told.
        """
        change_id = await self._store.ended_change(account_id)
        if change_id is not None:
            await self._peers.finish_mode_change(account_id, change_id)
            await self._store.finish_changes(account_id, change_id)
