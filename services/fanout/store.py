"""The progress of large fan-outs, and the paused topics, in PostgreSQL.

A large audience is divided into chunks. An event, ChunkReady, is published for each. An account's
chunk events use `_LANES` lanes: keys that are spread over partitions, and so over workers. Events
of one lane are handled in sequence, so an account has at most 4 chunks in progress, however often
it posts and however many followers it has. At most `_MAX_PUBLISHED` chunks of a fan-out are in the
topic at a time: each finished chunk publishes the next one of its lane. So a fan-out with thousands
of chunks does not delay others.

A chunk's progress is stored, so a handler that receives its event again resumes from there.
Repeating work is harmless, and no work is lost if a process dies: the event is redelivered until
the chunk is done, and the next event is stored in the transaction that finishes the chunk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from photomesh.fanout.v1.events_pb2 import ChunkReady
from psycopg.rows import class_row, scalar_row

from services.chassis.database.pool import Database
from services.chassis.events.outbox import Outbox, Transaction

_LANES = 4

_MAX_PUBLISHED = 4 * _LANES
"""A multiple of `_LANES`, so that each chunk publishes a chunk of its own lane."""

KEPT_FINISHED = timedelta(days=1)
"""How long a finished fan-out is kept: as long as its event may be redelivered."""

KEPT_UNFINISHED = timedelta(days=30)
"""How long an unfinished fan-out is kept. It never finishes if an operator drops the dead letter of
one of its chunks."""

_PURGE_BATCH = 1000

# A redelivered event adds nothing.
_ADD = """
    INSERT INTO fanouts (source, kind, account_id, subject_id, followers, chunks)
    VALUES (%(source)s, %(kind)s, %(account_id)s, %(subject_id)s, %(followers)s, %(chunks)s)
    ON CONFLICT (source) DO NOTHING
    RETURNING fanout_id
"""

_ADD_CHUNKS = """
    INSERT INTO fanout_chunks (fanout_id, chunk, after_id, until_id, position)
    SELECT %(fanout_id)s, number - 1, after_id, until_id, after_id
      FROM unnest(%(after_ids)s::bigint[], %(until_ids)s::bigint[])
           WITH ORDINALITY AS bounds (after_id, until_id, number)
"""

_CHUNK = """
    SELECT fanout_id, chunk, kind, account_id, subject_id, after_id, until_id, position, effect,
           reached, done
      FROM fanout_chunks JOIN fanouts USING (fanout_id)
     WHERE fanout_id = %(fanout_id)s AND chunk = %(chunk)s
"""

_SAVE_PROGRESS = """
    UPDATE fanout_chunks
       SET position = %(position)s, effect = %(effect)s, reached = %(reached)s
     WHERE fanout_id = %(fanout_id)s AND chunk = %(chunk)s AND NOT done
"""

# Of several concurrent calls for one chunk, only the first changes the row.
_FINISH_CHUNK = """
    UPDATE fanout_chunks SET done = true, reached = %(reached)s
     WHERE fanout_id = %(fanout_id)s AND chunk = %(chunk)s AND NOT done
"""

# A mode change gets its finish time later, when graph has been notified.
_COUNT_CHUNK = """
    UPDATE fanouts
       SET chunks_done = chunks_done + 1,
           finish_time = CASE WHEN kind = 'POST' AND chunks_done + 1 = chunks THEN now() END
     WHERE fanout_id = %(fanout_id)s
    RETURNING chunks
"""

# A chunk of an older change may temporarily undo what the newest one did, until it checks the mode
# again. So a change is complete only when all of the account's changes are done.
# Answered by fanouts_modes.
_COMPLETED_CHANGE = """
    SELECT max(subject_id)
      FROM fanouts
     WHERE account_id = %(account_id)s AND kind = 'MODE' AND finish_time IS NULL
    HAVING bool_and(chunks_done = chunks)
"""

_FINISH_CHANGES = """
    UPDATE fanouts SET finish_time = now()
     WHERE account_id = %(account_id)s AND kind = 'MODE' AND finish_time IS NULL
       AND subject_id <= %(change_id)s AND chunks_done = chunks
"""

# Answered by fanouts_in_flight.
_IN_FLIGHT = """
    SELECT fanout_id, kind, account_id, subject_id, begin_time, chunks, chunks_done, followers,
           (SELECT sum(reached) FROM fanout_chunks WHERE fanout_chunks.fanout_id = f.fanout_id)
               ::bigint AS reached
      FROM fanouts AS f
     WHERE finish_time IS NULL AND fanout_id > %(after_id)s
     ORDER BY fanout_id
     LIMIT %(limit)s
"""

# Answered by fanouts_finished and fanouts_in_flight. Concurrent purges take different rows.
_PURGE = """
    DELETE FROM fanouts
     WHERE fanout_id IN (
               SELECT fanout_id
                 FROM fanouts
                WHERE finish_time < %(finished_before)s
                   OR finish_time IS NULL AND begin_time < %(began_before)s
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           )
"""

_PAUSED = "SELECT topic FROM paused_topics"

_PAUSE = "INSERT INTO paused_topics (topic) VALUES (%(topic)s) ON CONFLICT DO NOTHING"

_RESUME = "DELETE FROM paused_topics WHERE topic = %(topic)s"


class FanoutKind(StrEnum):
    """What a fan-out applies to feeds."""

    POST = "POST"
    """A post is pushed or retracted."""
    MODE = "MODE"
    """An account's posts become pulled or pushed."""


@dataclass(frozen=True)
class Chunk:
    """A part of the followers in a fan-out."""

    fanout_id: int
    chunk: int
    kind: FanoutKind
    account_id: int
    subject_id: int
    """The id of the post or of the mode change."""
    after_id: int
    until_id: int
    """The chunk contains the followers with ids above `after_id`, up to this id; 0: to the last."""
    position: int
    """The last follower processed, or `after_id`."""
    effect: str
    """The effect applied up to `position`; empty: none yet."""
    reached: int
    """The number of followers processed."""
    done: bool


@dataclass(frozen=True)
class FanoutInFlight:
    """A large fan-out in progress."""

    fanout_id: int
    kind: FanoutKind
    account_id: int
    subject_id: int
    begin_time: datetime
    chunks: int
    chunks_done: int
    followers: int
    reached: int


class FanoutStore:
    """Large fan-outs, and paused topics. Every method may raise Unavailable."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def begin(
        self,
        source: str,
        kind: FanoutKind,
        account_id: int,
        subject_id: int,
        *,
        followers: int,
        bounds: Sequence[int],
        after: int = 0,
    ) -> None:
        """Begins a fan-out, unless its event, `source`, was handled before.

        The chunks begin after the follower `after`; `bounds` are the last followers of all chunks
        except the last.
        """
        chunks = len(bounds) + 1
        async with self._outbox.transaction() as tx:
            cursor = tx.connection.cursor(row_factory=scalar_row)
            values = {
                "source": source,
                "kind": kind,
                "account_id": account_id,
                "subject_id": subject_id,
                "followers": followers,
                "chunks": chunks,
            }
            fanout_id = await (await cursor.execute(_ADD, values)).fetchone()
            if fanout_id is None:
                return
            cuts = {"after_ids": [after, *bounds], "until_ids": [*bounds, 0]}
            await cursor.execute(_ADD_CHUNKS, {"fanout_id": fanout_id, **cuts})
            _publish(tx, account_id, fanout_id, range(min(chunks, _MAX_PUBLISHED)))

    async def chunk(self, fanout_id: int, chunk: int) -> Chunk | None:
        """Returns a chunk; None: it was purged."""
        values = {"fanout_id": fanout_id, "chunk": chunk}
        found = await self._database.fetch(_CHUNK, values, class_row(Chunk))
        return found[0] if found else None

    async def save_progress(
        self, chunk: Chunk, *, position: int, effect: str, reached: int
    ) -> None:
        """Stores a chunk's progress."""
        progress = {"position": position, "effect": effect, "reached": reached}
        await self._database.execute(_SAVE_PROGRESS, {**_key(chunk), **progress})

    async def finish_chunk(self, chunk: Chunk, *, reached: int) -> None:
        """Marks a chunk as done, and publishes the next one of its lane."""
        async with self._outbox.transaction() as tx:
            cursor = tx.connection.cursor(row_factory=scalar_row)
            await cursor.execute(_FINISH_CHUNK, {**_key(chunk), "reached": reached})
            if cursor.rowcount:
                chunks = await (await cursor.execute(_COUNT_CHUNK, _key(chunk))).fetchone() or 0
                following = chunk.chunk + _MAX_PUBLISHED
                if following < chunks:
                    _publish(tx, chunk.account_id, chunk.fanout_id, [following])

    async def completed_change(self, account_id: int) -> int | None:
        """Returns an account's newest mode change, if all chunks of its mode changes are done."""
        values = {"account_id": account_id}
        found = await self._database.fetch(_COMPLETED_CHANGE, values, scalar_row)
        return found[0] if found else None

    async def finish_changes(self, account_id: int, change_id: int) -> None:
        """Marks an account's mode changes as finished, up to the one that graph was notified of."""
        values = {"account_id": account_id, "change_id": change_id}
        await self._database.execute(_FINISH_CHANGES, values)

    async def in_flight(self, *, after_id: int, limit: int) -> list[FanoutInFlight]:
        """Returns fan-outs in progress, oldest first."""
        values = {"after_id": after_id, "limit": limit}
        return await self._database.fetch(_IN_FLIGHT, values, class_row(FanoutInFlight))

    async def purge(self, now: datetime) -> int:
        """Deletes fan-outs whose retention has expired at `now`; returns how many."""
        values = {"finished_before": now - KEPT_FINISHED, "began_before": now - KEPT_UNFINISHED}
        return await self._database.purge(_PURGE, values, batch=_PURGE_BATCH)

    async def paused_topics(self) -> frozenset[str]:
        """Returns the paused topics."""
        return frozenset(await self._database.fetch(_PAUSED, {}, scalar_row))

    async def pause(self, topic: str) -> None:
        await self._database.execute(_PAUSE, {"topic": topic})

    async def resume(self, topic: str) -> None:
        await self._database.execute(_RESUME, {"topic": topic})


def _publish(tx: Transaction, account_id: int, fanout_id: int, chunks: Iterable[int]) -> None:
    for chunk in chunks:
        # Ids that differ only in their last two bits have the same shard and millisecond, so two
        # accounts never share a lane.
        lane_id = account_id ^ (chunk % _LANES)
        tx.publish(ChunkReady(fanout_id=fanout_id, chunk=chunk, lane_id=lane_id))


def _key(chunk: Chunk) -> dict[str, int]:
    return {"fanout_id": chunk.fanout_id, "chunk": chunk.chunk}
