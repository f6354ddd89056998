"""All SQL of the post service."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import LiteralString

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated
from psycopg.rows import kwargs_row, scalar_row

from services.common.database import Database, int_array
from services.common.ids import shard_of
from services.common.outbox import Outbox

_ADD_POST = """
    INSERT INTO posts (shard, post_id, author_id, caption, state, request_id, settle_time)
    VALUES (%(shard)s, next_id(%(shard)s), %(author_id)s, %(caption)s, 'PROCESSING',
            %(request_id)s, now() + %(settle_after)s)
    ON CONFLICT (shard, author_id, request_id) WHERE request_id <> '' DO NOTHING
    RETURNING post_id
"""

_ADD_MEDIA = """
    INSERT INTO post_media (shard, post_id, position, media_id)
    SELECT %(shard)s, %(post_id)s, position, media_id
      FROM unnest(%(media_ids)s::bigint[]) WITH ORDINALITY AS media (media_id, position)
"""

_COLUMNS = """
    SELECT post_id, author_id, caption, state,
           ARRAY(SELECT media_id FROM post_media AS media
                  WHERE media.shard = posts.shard AND media.post_id = posts.post_id
                  ORDER BY position) AS media_ids,
           ARRAY(SELECT snapshot FROM post_media AS media
                  WHERE media.shard = posts.shard AND media.post_id = posts.post_id
                    AND snapshot IS NOT NULL
                  ORDER BY position) AS snapshots
      FROM posts
"""

# Answered by posts_request.
_POST_BY_REQUEST = f"""
    {_COLUMNS}
     WHERE shard = %(shard)s AND author_id = %(author_id)s
       AND request_id = %(request_id)s AND request_id <> ''
"""

# Answered by the primary keys: one look into each table for each post, in its own partition.
_POSTS = f"""
    {_COLUMNS}
      JOIN unnest(%(shards)s::smallint[], %(post_ids)s::bigint[]) AS wanted (shard, post_id)
           USING (shard, post_id)
"""

# A media item has its owner's shard, and so has each post of it. Answered by post_media_awaited.
_AWAITING = """
    SELECT post_id
      FROM post_media
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot IS NULL
"""

# Puts the posts off while it takes them: replicas share the work, and posts that wait for long
# do not keep the sweep from those behind them. Answered by posts_unsettled.
_TAKE_UNSETTLED = """
    UPDATE posts
       SET settle_time = now() + %(settle_after)s
     WHERE (shard, post_id) IN (
               SELECT shard, post_id
                 FROM posts
                WHERE state = 'PROCESSING' AND settle_time < now()
                ORDER BY settle_time
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           )
    RETURNING post_id
"""

# Of several that settle, archive or show a post at once, the first changes the row and the others
# find it changed. Answered by the primary key.
_MOVE = """
    UPDATE posts
       SET state = %(after)s
     WHERE shard = %(shard)s AND post_id = %(post_id)s AND state = %(before)s
"""

# Answered by the primary key.
_DELETE = """
    UPDATE posts
       SET state = 'DELETED', caption = ''
     WHERE shard = %(shard)s AND post_id = %(post_id)s AND state <> 'DELETED'
"""

# Answered by the primary key. Whoever publishes the post has locked its row first, too.
_DELETE_MEDIA = """
    DELETE FROM post_media
     WHERE shard = %(shard)s AND post_id = %(post_id)s
"""

_KEEP_SNAPSHOTS = """
    UPDATE post_media
       SET snapshot = kept.snapshot
      FROM unnest(%(snapshots)s::bytea[]) WITH ORDINALITY AS kept (snapshot, position)
     WHERE shard = %(shard)s AND post_id = %(post_id)s AND post_media.position = kept.position
       -- What was deleted while the post was settled stays so.
       AND post_media.snapshot IS NULL
"""

# Answered by post_media_shown.
_SHOWN_MEDIA = """
    SELECT DISTINCT snapshot
      FROM post_media
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot IS NOT NULL
"""

# Names what it replaces, so that what was deleted meanwhile does not come back. Answered by
# post_media_shown.
_REFRESH_MEDIA = """
    UPDATE post_media
       SET snapshot = %(snapshot)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot = %(shown)s
    RETURNING post_id
"""

# In posts that wait, too: whoever publishes one at this moment leaves it as it is. Answered by
# post_media_shown.
_FORGET_MEDIA = """
    UPDATE post_media
       SET snapshot = %(snapshot)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s
    RETURNING post_id
"""

# Those that may be in a cache, or may be shown at this moment by somebody who does not wait for us.
# Whoever publishes one waits: they write to the same rows of post_media. Answered by the primary
# key.
_ONCE_PUBLISHED = """
    SELECT post_id, author_id
      FROM posts
      JOIN unnest(%(shards)s::smallint[], %(post_ids)s::bigint[]) AS wanted (shard, post_id)
           USING (shard, post_id)
     WHERE state IN ('PUBLISHED', 'ARCHIVED')
"""

# The newest posts of thousands of authors. An author whose newest post is not among the `limit`
# newest of such has nothing among the `limit` newest of all, so most authors cost one look into
# posts_published. When there are `limit` of the others, nothing below the last of their newest
# counts either, so these, too, give little more than what is returned.
_RECENT = """
    WITH newest AS MATERIALIZED (
        SELECT author.shard, author.author_id, latest.post_id
          FROM unnest(%(shards)s::smallint[], %(author_ids)s::bigint[]) AS author (shard, author_id)
         CROSS JOIN LATERAL (
                   SELECT post_id
                     FROM posts
                    WHERE posts.shard = author.shard AND posts.author_id = author.author_id
                      AND state = 'PUBLISHED' AND post_id < %(before_post_id)s
                    ORDER BY post_id DESC
                    LIMIT 1
               ) AS latest
         ORDER BY latest.post_id DESC
         LIMIT %(limit)s
    ), bound AS MATERIALIZED (
        SELECT CASE WHEN count(*) = %(limit)s THEN min(post_id) ELSE 0 END AS post_id FROM newest
    )
    SELECT recent.post_id
      FROM newest
     CROSS JOIN LATERAL (
               SELECT post_id
                 FROM posts
                WHERE posts.shard = newest.shard AND posts.author_id = newest.author_id
                  AND state = 'PUBLISHED' AND post_id <= newest.post_id
                  AND post_id >= (SELECT post_id FROM bound)
                ORDER BY post_id DESC
                LIMIT %(limit)s
           ) AS recent
     ORDER BY recent.post_id DESC
     LIMIT %(limit)s
"""

_FIRST_SETTLE = timedelta(seconds=10)
"""A post that is younger is left to its creation and to events."""

_NEXT_SETTLE = timedelta(seconds=30)
"""How long the sweep leaves a post alone that it found waiting for its media."""

_LARGEST_ID = (1 << 63) - 1


class State(StrEnum):
    """Where a post is on its way; the names of photomesh.post.v1.PostState without its prefix."""

    PROCESSING = "PROCESSING"
    PUBLISHED = "PUBLISHED"
    FAILED = "FAILED"
    ARCHIVED = "ARCHIVED"
    DELETED = "DELETED"


@dataclass(frozen=True)
class Post:
    """One post."""

    post_id: int
    author_id: int
    caption: str
    state: State
    media_ids: Sequence[int]
    """In the author's order; none of a post that is DELETED."""
    snapshots: Sequence[StoredMedia]
    """The media as they are shown since the post was PUBLISHED; none before."""


class PostStore:
    """Posts in PostgreSQL. Every method may raise Unavailable."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def add_post(
        self, author_id: int, media_ids: Sequence[int], caption: str, request_id: str
    ) -> Post | None:
        """Adds a post, PROCESSING; None: the author used the request id before."""
        shard = shard_of(author_id)
        async with self._database.transaction() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(
                _ADD_POST,
                {
                    "shard": shard,
                    "author_id": author_id,
                    "caption": caption,
                    "request_id": request_id,
                    "settle_after": _FIRST_SETTLE,
                },
            )
            post_id: int | None = await cursor.fetchone()
            if post_id is None:
                return None
            await connection.execute(
                _ADD_MEDIA, {"shard": shard, "post_id": post_id, "media_ids": list(media_ids)}
            )
        return Post(post_id, author_id, caption, State.PROCESSING, tuple(media_ids), ())

    async def post_by_request(self, author_id: int, request_id: str) -> Post | None:
        """Returns the post that an author made with a request id; None for the empty one."""
        found = await self._posts(
            _POST_BY_REQUEST,
            {"shard": shard_of(author_id), "author_id": author_id, "request_id": request_id},
        )
        return found[0] if found else None

    async def post(self, post_id: int) -> Post | None:
        """Returns a post in any state."""
        return (await self.posts([post_id])).get(post_id)

    async def posts(self, post_ids: Sequence[int]) -> dict[int, Post]:
        """Returns those of the posts that exist, in any state, by their ids."""
        wanted = sorted(set(post_ids))
        if not wanted:
            return {}
        found = await self._posts(
            _POSTS,
            {"shards": int_array(map(shard_of, wanted)), "post_ids": int_array(wanted)},
        )
        return {post.post_id: post for post in found}

    async def posts_awaiting(self, media_id: int) -> list[Post]:
        """Returns the posts that are PROCESSING and show a media item."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(_AWAITING, {"shard": shard_of(media_id), "media_id": media_id})
            post_ids: list[int] = await cursor.fetchall()
        posts = await self.posts(post_ids)
        return [post for post in posts.values() if post.state is State.PROCESSING]

    async def take_unsettled(self, limit: int) -> list[Post]:
        """Returns up to `limit` posts that have been PROCESSING for over 10 s.

        No caller is given one of them again within 30 s.
        """
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(_TAKE_UNSETTLED, {"settle_after": _NEXT_SETTLE, "limit": limit})
            post_ids: list[int] = await cursor.fetchall()
        return list((await self.posts(post_ids)).values())

    async def publish(self, post: Post, media: Sequence[StoredMedia]) -> bool:
        """Makes a post PUBLISHED with its media; False: it was not PROCESSING any more."""
        row = {"shard": shard_of(post.post_id), "post_id": post.post_id}
        async with self._outbox.transaction() as tx:
            settled = await tx.connection.execute(
                _MOVE, {**row, "before": State.PROCESSING, "after": State.PUBLISHED}
            )
            if settled.rowcount == 0:
                return False
            await tx.connection.execute(
                _KEEP_SNAPSHOTS,
                {**row, "snapshots": [item.SerializeToString() for item in media]},
            )
            tx.publish(PostCreated(post_id=post.post_id, author_id=post.author_id))
        return True

    async def fail(self, post: Post) -> None:
        """Makes a post FAILED, unless it is not PROCESSING any more."""
        async with self._database.connection() as connection:
            await connection.execute(
                _MOVE,
                {
                    "shard": shard_of(post.post_id),
                    "post_id": post.post_id,
                    "before": State.PROCESSING,
                    "after": State.FAILED,
                },
            )

    async def archive(self, post: Post) -> None:
        """Makes a post ARCHIVED and tells so, if it is PUBLISHED."""
        await self._move(post, State.PUBLISHED, State.ARCHIVED)

    async def unarchive(self, post: Post) -> None:
        """Makes a post PUBLISHED and tells so, if it is ARCHIVED."""
        await self._move(post, State.ARCHIVED, State.PUBLISHED)

    async def delete(self, post: Post) -> None:
        """Makes a post DELETED and tells so, unless it is."""
        row = {"shard": shard_of(post.post_id), "post_id": post.post_id}
        async with self._outbox.transaction() as tx:
            deleted = await tx.connection.execute(_DELETE, row)
            if deleted.rowcount == 0:
                return
            await tx.connection.execute(_DELETE_MEDIA, row)
            tx.publish(PostChanged(post_id=post.post_id, author_id=post.author_id))

    async def shown_media(self, media_id: int) -> list[StoredMedia]:
        """Returns what posts show of a media item; posts of different times may differ."""
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            values = {"shard": shard_of(media_id), "media_id": media_id}
            await cursor.execute(_SHOWN_MEDIA, values)
            return [StoredMedia.FromString(snapshot) for snapshot in await cursor.fetchall()]

    async def refresh_media(self, shown: StoredMedia, media: StoredMedia) -> None:
        """Puts a media item as it is now in the place of what posts show of it, and tells so."""
        await self._show(
            _REFRESH_MEDIA,
            {
                "shard": shard_of(media.media_id),
                "media_id": media.media_id,
                "shown": shown.SerializeToString(),
                "snapshot": media.SerializeToString(),
            },
        )

    async def forget_media(self, deleted: StoredMedia) -> list[Post]:
        """Puts a deleted media item in the place of what posts show of it, and tells so.

        Returns the posts, also those that were not published yet.
        """
        post_ids = await self._show(
            _FORGET_MEDIA,
            {
                "shard": shard_of(deleted.media_id),
                "media_id": deleted.media_id,
                "snapshot": deleted.SerializeToString(),
            },
        )
        return list((await self.posts(post_ids)).values())

    async def recent(self, author_ids: Sequence[int], *, before: int, limit: int) -> list[int]:
        """Returns the ids of the newest published posts of some authors, newest first.

        `before`: only ids below it; 0: from the newest. An author may come twice.
        """
        wanted = sorted(set(author_ids))
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            await cursor.execute(
                _RECENT,
                {
                    "shards": int_array(map(shard_of, wanted)),
                    "author_ids": int_array(wanted),
                    "before_post_id": before or _LARGEST_ID,
                    "limit": limit,
                },
            )
            return await cursor.fetchall()

    async def _move(self, post: Post, before: State, after: State) -> None:
        row = {"shard": shard_of(post.post_id), "post_id": post.post_id}
        async with self._outbox.transaction() as tx:
            moved = await tx.connection.execute(_MOVE, {**row, "before": before, "after": after})
            if moved.rowcount:
                tx.publish(PostChanged(post_id=post.post_id, author_id=post.author_id))

    async def _show(self, query: LiteralString, parameters: dict[str, object]) -> list[int]:
        """Changes what posts show; tells of those that were published; returns all their ids."""
        async with self._outbox.transaction() as tx:
            cursor = tx.connection.cursor(row_factory=scalar_row)
            await cursor.execute(query, parameters)
            post_ids: list[int] = await cursor.fetchall()
            published = await tx.connection.execute(
                _ONCE_PUBLISHED,
                {"shards": int_array(map(shard_of, post_ids)), "post_ids": int_array(post_ids)},
            )
            for post_id, author_id in await published.fetchall():
                tx.publish(PostChanged(post_id=post_id, author_id=author_id))
        return post_ids

    async def _posts(self, query: LiteralString, parameters: dict[str, object]) -> list[Post]:
        async with self._database.connection() as connection:
            # As text, a hundred posts with their snapshots would take twice the time: 5 ms.
            cursor = connection.cursor(row_factory=kwargs_row(_to_post), binary=True)
            await cursor.execute(query, parameters)
            return await cursor.fetchall()


def _to_post(
    post_id: int,
    author_id: int,
    caption: str,
    state: str,
    media_ids: list[int],
    snapshots: list[bytes],
) -> Post:
    media = tuple(map(StoredMedia.FromString, snapshots))
    return Post(post_id, author_id, caption, State(state), tuple(media_ids), media)
