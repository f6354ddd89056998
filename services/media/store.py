"""All SQL of the media service and of its worker."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from google.protobuf.message import Message
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed, MediaUploaded
from photomesh.media.v1.media_service_pb2 import MediaState
from psycopg.rows import kwargs_row, scalar_row, tuple_row
from psycopg.types.json import Jsonb

from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database, fetch, int_array
from services.chassis.errors import Unavailable
from services.chassis.events.outbox import Outbox
from services.media.pipeline.outputs import RECIPE, STEPS, Fact, Failure, Rendition, Variant
from services.media.storage.keys import key_prefix

_COLUMNS = """
    media_id, owner_id, size_bytes, content_type, state, etag, failure, width, height, variants,
    blurhash, dominant_colour, perceptual_hash, recipe, door AS method, sha256,
    s3_upload_id, steps_done
"""

# Of two concurrent inserts with the same request id, the second waits for the first and adds
# nothing.
_ADD = f"""
    INSERT INTO media (shard, media_id, owner_id, request_id, door, size_bytes, content_type,
                       sha256)
    VALUES (%(shard)s, next_id(%(shard)s), %(owner_id)s, %(request_id)s, %(method)s, %(size_bytes)s,
            %(content_type)s, %(sha256)s)
    ON CONFLICT (shard, owner_id, request_id) WHERE request_id IS NOT NULL DO NOTHING
    RETURNING {_COLUMNS}
"""  # noqa: S608 -- Only constants are interpolated, here and below.

# Answered by media_requests.
_BY_REQUEST = f"""
    SELECT {_COLUMNS}
      FROM media
     WHERE shard = %(shard)s AND owner_id = %(owner_id)s AND request_id = %(request_id)s
"""  # noqa: S608

# Answered by media_open.
_COUNT_OPEN = """
    SELECT count(*)
      FROM (SELECT
              FROM media
             WHERE shard = %(shard)s AND owner_id = %(owner_id)s
               AND state = 'PENDING' AND NOT aborted
             LIMIT %(limit)s) AS open
"""

# Answered by media_content. Aborted, failed and deleted items are not reused.
_BY_CONTENT = f"""
    SELECT {_COLUMNS}
      FROM media
     WHERE shard = %(shard)s AND owner_id = %(owner_id)s AND sha256 = %(sha256)s
       AND %(size_bytes)s IN (0, size_bytes) AND state IN ('UPLOADED', 'PROCESSING', 'READY')
     ORDER BY media_id
     LIMIT 1
"""  # noqa: S608

# Answered by the primary key.
_ONE = f"""
    SELECT {_COLUMNS}
      FROM media
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND NOT aborted
"""  # noqa: S608

# The shards prune the partitions; answered by the primary key.
_MANY = f"""
    SELECT {_COLUMNS}
      FROM media
     WHERE shard = ANY(%(shards)s::smallint[])
       AND media_id = ANY(%(media_ids)s::bigint[])
       AND NOT aborted
"""  # noqa: S608

# Each transition checks the old state, so that of two concurrent ones the second updates no row.
_UPLOADED = """
    UPDATE media
       SET state = 'UPLOADED', etag = %(etag)s, size_bytes = %(size_bytes)s, sha256 = %(sha256)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state = 'PENDING' AND NOT aborted
"""

# Of two concurrent updates, the first one wins.
_IN_PARTS = """
    UPDATE media
       SET s3_upload_id = %(s3_upload_id)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state = 'PENDING' AND NOT aborted
       AND s3_upload_id IS NULL
"""

# Clears the request id, so that the client can reuse it for a new upload.
_ABORT = """
    UPDATE media
       SET aborted = true, request_id = NULL
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state = 'PENDING' AND NOT aborted
"""

# Answered by media_pending, like the next statement. Ids sort by time.
_ABANDON = """
    UPDATE media
       SET aborted = true, request_id = NULL
     WHERE (shard, media_id) IN (
               SELECT shard, media_id
                 FROM media
                WHERE state = 'PENDING' AND NOT aborted AND media_id < %(before)s
                ORDER BY media_id
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED)
"""

_ABORTED = f"""
    SELECT {_COLUMNS}
      FROM media
     WHERE state = 'PENDING' AND aborted AND media_id < %(before)s
     ORDER BY media_id
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
"""  # noqa: S608

_REMOVE = "DELETE FROM media WHERE shard = %(shard)s AND media_id = %(media_id)s AND aborted"

# Also matches PROCESSING: the worker that started to process the item may have died.
_PROCESSING = f"""
    UPDATE media
       SET state = 'PROCESSING'
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state IN ('UPLOADED', 'PROCESSING')
    RETURNING {_COLUMNS}
"""  # noqa: S608

# Only adds steps, so that a repeated run does not reset the reported progress.
_STEPS_DONE = """
    UPDATE media
       SET steps_done = ARRAY(SELECT DISTINCT unnest(steps_done || %(steps)s::text[]))
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state = 'PROCESSING'
       AND NOT steps_done @> %(steps)s::text[]
"""

# Also matches READY items of another recipe, which stay READY while they are processed again.
_READY = """
    UPDATE media
       SET state = 'READY', width = %(width)s, height = %(height)s, variants = %(variants)s,
           blurhash = %(blurhash)s, dominant_colour = %(dominant_colour)s,
           perceptual_hash = %(perceptual_hash)s, recipe = %(recipe)s, steps_done = '{}'
     WHERE shard = %(shard)s AND media_id = %(media_id)s
       AND (state = 'PROCESSING' OR state = 'READY' AND recipe IS DISTINCT FROM %(recipe)s)
"""

# Answered by the primary key, from the end of the last page.
_OUTDATED = """
    SELECT shard, media_id, owner_id
      FROM media
     WHERE (shard, media_id) > (%(shard)s, %(media_id)s)
       AND state = 'READY' AND recipe IS DISTINCT FROM %(recipe)s
     ORDER BY shard, media_id
     LIMIT %(limit)s
"""

_FAILED = """
    UPDATE media
       SET state = 'FAILED', failure = %(failure)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state = 'PROCESSING'
"""


# Also clears what was derived from the picture. Idempotent.
_DELETED = """
    UPDATE media
       SET state = 'DELETED', failure = NULL, width = NULL, height = NULL, variants = NULL,
           blurhash = NULL, dominant_colour = NULL, perceptual_hash = NULL, recipe = NULL,
           steps_done = '{}', erase_time = now() + %(erase_after)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND state <> 'DELETED'
"""

# Postpones the items that it returns, so that replicas share the work and failures are retried.
# Answered by media_to_erase.
_TAKE_TO_ERASE = f"""
    UPDATE media
       SET erase_time = now() + %(again_after)s
     WHERE (shard, media_id) IN (
               SELECT shard, media_id
                 FROM media
                WHERE erase_time < now()
                ORDER BY erase_time
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           )
    RETURNING {_COLUMNS}
"""  # noqa: S608

_ERASED = """
    UPDATE media SET erase_time = NULL WHERE shard = %(shard)s AND media_id = %(media_id)s
"""

_ERASE_AFTER = timedelta(minutes=20)
"""Longer than an upload form is valid, and than a worker takes to process an item."""

_ERASE_AGAIN_AFTER = timedelta(minutes=5)


class State(StrEnum):
    """The state of a media item; the names of photomesh.media.v1.MediaState."""

    PENDING = "PENDING"
    UPLOADED = "UPLOADED"
    PROCESSING = "PROCESSING"
    READY = "READY"
    FAILED = "FAILED"
    DELETED = "DELETED"


class UploadMethod(StrEnum):
    """How a client uploads a file. Column `door` stores the names."""

    FORM = "FORM"
    """The client POSTs the file to S3."""
    PARTS = "PARTS"
    """The client PUTs the file to S3 in parts."""
    STREAM = "STREAM"
    """The client streams the file through this service."""


@dataclass(frozen=True)
class Declaration:
    """A client's declaration of a file that it is about to upload."""

    method: UploadMethod
    size_bytes: int
    """0: not declared."""
    content_type: str
    sha256: bytes | None
    request_id: str | None


@dataclass(frozen=True)
class Media:
    """One media item."""

    media_id: int
    owner_id: int
    size_bytes: int
    """The size of the original: declared (0: not declared) while PENDING, then verified."""
    content_type: str
    state: State
    etag: str | None
    """The ETag of the checked original; None while PENDING."""
    failure: Failure | None
    width: int
    """The width of the upright picture in pixels; 0 until READY."""
    height: int
    """The height of the upright picture in pixels; 0 until READY."""
    variants: tuple[Variant, ...]
    """Smallest first; empty until READY."""
    facts: Mapping[Fact, str]
    """Empty until READY."""
    recipe: str | None
    """The recipe that made the variants and facts; None until READY."""
    method: UploadMethod
    sha256: bytes | None
    """The SHA-256 of the original: declared while PENDING, then verified; None: unknown."""
    s3_upload_id: str | None
    """S3's id of a multipart upload; None: there is none."""
    steps_done: tuple[str, ...]
    """The finished steps, in the order of STEPS."""

    @property
    def key_prefix(self) -> str:
        """The prefix of the keys of the item's files in S3."""
        return key_prefix(self.media_id, self.owner_id)


class MediaStore:
    """Media in PostgreSQL. Every method may raise Unavailable."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def add(self, owner_id: int, declaration: Declaration) -> Media:
        """Adds a PENDING media item, or returns the one that has the owner's request id."""
        values = asdict(declaration) | _owned(owner_id)
        media = await self._first(_ADD, values) or await self._first(_BY_REQUEST, values)
        if media is None:
            # The item with this request id was aborted between the two statements.
            raise Unavailable("The upload")
        return media

    async def count_open(self, owner_id: int, *, limit: int) -> int:
        """Returns the number of an owner's open uploads; at most `limit`."""
        values = _owned(owner_id) | {"limit": limit}
        count: int
        [count] = await self._database.fetch(_COUNT_OPEN, values, scalar_row)
        return count

    async def requested(self, owner_id: int, request_id: str) -> Media | None:
        """Returns the media item that has the owner's request id."""
        return await self._first(_BY_REQUEST, _owned(owner_id) | {"request_id": request_id})

    async def same_content(self, owner_id: int, *, sha256: bytes, size_bytes: int) -> Media | None:
        """Returns the owner's UPLOADED, PROCESSING or READY media item with these bytes."""
        content = {"sha256": sha256, "size_bytes": size_bytes}
        return await self._first(_BY_CONTENT, _owned(owner_id) | content)

    async def media(self, media_id: int) -> Media | None:
        """Returns a media item of any owner."""
        return await self._first(_ONE, _key(media_id))

    async def many(self, media_ids: Sequence[int]) -> dict[int, Media]:
        """Returns the existing media items by id."""
        values = {
            "shards": int_array({*map(shard_of, media_ids)}),
            "media_ids": int_array({*media_ids}),
        }
        found = await self._database.fetch(_MANY, values, kwargs_row(_media))
        return {media.media_id: media for media in found}

    async def use_parts(self, media: Media, s3_upload_id: str) -> bool:
        """Stores the S3 upload id of a PENDING upload.

        Returns False if the upload already has one, or is not open any more.
        """
        values = _key(media.media_id) | {"s3_upload_id": s3_upload_id}
        return await self._database.execute(_IN_PARTS, values) == 1

    async def mark_uploaded(
        self, media: Media, etag: str, *, size_bytes: int, sha256: bytes | None
    ) -> None:
        """Makes a PENDING media item UPLOADED and publishes MediaUploaded.

        Does nothing if the item is not PENDING.
        """
        event = MediaUploaded(media_id=media.media_id, owner_id=media.owner_id)
        values = {"etag": etag, "size_bytes": size_bytes, "sha256": sha256}
        await self._transition(media, _UPLOADED, values, event)

    async def abort(self, media: Media) -> bool:
        """Aborts a PENDING upload; False: it is not PENDING any more."""
        return await self._database.execute(_ABORT, _key(media.media_id)) == 1

    async def abandon(self, *, before: int, limit: int) -> int:
        """Aborts up to `limit` PENDING uploads with ids less than `before`; returns how many."""
        return await self._database.execute(_ABANDON, {"before": before, "limit": limit})

    async def remove_aborted(
        self, remove_data: Callable[[Media], Awaitable[None]], *, before: int, limit: int
    ) -> int:
        """Deletes aborted uploads with ids less than `before`, each after calling `remove_data`.

        Returns the number, at most `limit`. Skips uploads that another process is removing.
        """
        async with self._database.transaction() as connection:
            values = {"before": before, "limit": limit}
            aborted = await fetch(connection, _ABORTED, values, kwargs_row(_media))
            for media in aborted:
                await remove_data(media)
                await connection.execute(_REMOVE, _key(media.media_id))
        return len(aborted)

    async def begin(self, media_id: int) -> Media | None:
        """Makes an uploaded media item PROCESSING; None: there is nothing to process.

        Returns an item that is READY by an outdated recipe unchanged.
        """
        if begun := await self._first(_PROCESSING, _key(media_id)):
            return begun
        media = await self.media(media_id)
        outdated = media and media.state is State.READY and media.recipe != RECIPE
        return media if outdated else None

    async def add_steps(self, media: Media, steps: Collection[str]) -> None:
        """Adds finished steps to a PROCESSING media item. Does nothing in other states."""
        values = _key(media.media_id) | {"steps": list(steps)}
        await self._database.execute(_STEPS_DONE, values)

    async def announce_outdated(
        self, after: tuple[int, int], limit: int
    ) -> tuple[int, tuple[int, int]]:
        """Publishes MediaUploaded for media that are READY by an outdated recipe.

        Args:
            after: the shard and media id after which to start; (-1, 0) for the first call.
            limit: the largest number of media.

        Returns the number of media, and the shard and media id of the last one; `after` if there
        are none left.
        """
        values = {"shard": after[0], "media_id": after[1], "recipe": RECIPE, "limit": limit}
        async with self._outbox.transaction() as tx:
            rows = await fetch(tx.connection, _OUTDATED, values, tuple_row)
            for _, media_id, owner_id in rows:
                tx.publish(MediaUploaded(media_id=media_id, owner_id=owner_id))
        return len(rows), rows[-1][:2] if rows else after

    async def mark_ready(self, media: Media, rendition: Rendition) -> None:
        """Makes a media item READY and publishes MediaProcessed.

        Does nothing unless the item is PROCESSING, or READY by an outdated recipe.
        """
        facts = {fact.value: rendition.facts[fact] for fact in Fact}
        values = facts | {
            "recipe": RECIPE,
            "width": rendition.width,
            "height": rendition.height,
            "variants": Jsonb([asdict(variant) for variant in rendition.variants]),
        }
        event = _processed(media, MediaState.MEDIA_STATE_READY)
        await self._transition(media, _READY, values, event)

    async def mark_failed(self, media: Media, failure: Failure) -> None:
        """Makes a PROCESSING media item FAILED and publishes MediaProcessed.

        Does nothing in other states.
        """
        event = _processed(media, MediaState.MEDIA_STATE_FAILED)
        await self._transition(media, _FAILED, {"failure": failure.value}, event)

    async def delete(self, media: Media) -> None:
        """Makes a media item DELETED and publishes MediaDeleted. Idempotent."""
        event = MediaDeleted(media_id=media.media_id, owner_id=media.owner_id)
        await self._transition(media, _DELETED, {"erase_after": _ERASE_AFTER}, event)

    async def take_to_erase(self, limit: int) -> list[Media]:
        """Returns up to `limit` items whose second removal of files is due, most overdue first.

        Does not return the same items again for 5 minutes.
        """
        values = {"limit": limit, "again_after": _ERASE_AGAIN_AFTER}
        return await self._database.fetch(_TAKE_TO_ERASE, values, kwargs_row(_media))

    async def mark_erased(self, media: Media) -> None:
        """Records that an item's files were removed for the second and last time."""
        await self._database.execute(_ERASED, _key(media.media_id))

    async def _first(self, statement: str, values: dict[str, Any]) -> Media | None:
        found = await self._database.fetch(statement, values, kwargs_row(_media))
        return found[0] if found else None

    async def _transition(
        self, media: Media, statement: str, values: dict[str, Any], event: Message
    ) -> None:
        """Changes an item and publishes the event, if the old state allows the transition."""
        async with self._outbox.transaction() as tx:
            updated = await tx.connection.execute(statement, _key(media.media_id) | values)
            if updated.rowcount == 1:
                tx.publish(event)


def _key(media_id: int) -> dict[str, Any]:
    return {"shard": shard_of(media_id), "media_id": media_id}


def _owned(owner_id: int) -> dict[str, Any]:
    return {"shard": shard_of(owner_id), "owner_id": owner_id}


def _processed(media: Media, state: "MediaState.ValueType") -> MediaProcessed:
    return MediaProcessed(media_id=media.media_id, owner_id=media.owner_id, state=state)


def _media(**row: Any) -> Media:
    state = State(row["state"])
    facts = {fact: value for fact in Fact if (value := row.pop(fact)) is not None}
    converted = {
        "state": state,
        "failure": Failure(row["failure"]) if row["failure"] else None,
        "width": row["width"] or 0,
        "height": row["height"] or 0,
        "variants": tuple(Variant(**variant) for variant in row["variants"] or ()),
        "facts": facts,
        "method": UploadMethod(row["method"]),
        "steps_done": tuple(
            step for step in STEPS if state is State.READY or step in row["steps_done"]
        ),
    }
    return Media(**(row | converted))
