"""All SQL of the post service."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import LiteralString

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1.events_pb2 import PostChanged, PostCreated
from psycopg import AsyncConnection
from psycopg.rows import kwargs_row, scalar_row

from services.chassis.database.ids import shard_of
from services.chassis.database.pool import Database, fetch, int_array
from services.chassis.events.outbox import Outbox

_ADD_POST = """
    INSERT INTO posts (shard, post_id, author_id, caption, state, request_id, settle_time)
    VALUES (%(shard)s, next_id(%(shard)s), %(author_id)s, %(caption)s, 'PROCESSING',
            %(request_id)s, now() + %(sweep_after)s)
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

# Answered by the primary keys: one lookup per table and post, each in the post's own partition.
_POSTS = f"""
    {_COLUMNS}
      JOIN unnest(%(shards)s::smallint[], %(post_ids)s::bigint[]) AS wanted (shard, post_id)
           USING (shard, post_id)
"""

# A media item and its posts have the same owner, hence the same shard. Answered by
# post_media_awaited.
_AWAITING = """
    SELECT post_id
      FROM post_media
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot IS NULL
"""

# Postpones the posts it takes, so that replicas share the work, and posts that wait for a long time
# do not block later ones. Answered by posts_unsettled.
_TAKE_UNRESOLVED = """
    UPDATE posts
       SET settle_time = now() + %(sweep_after)s
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

# Of several concurrent transitions of a post, only the first changes the row. Answered by the
# primary key.
_TRANSITION = """
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

# Answered by the primary key. Cannot deadlock: `publish` also locks the row of posts first.
_DELETE_MEDIA = """
    DELETE FROM post_media
     WHERE shard = %(shard)s AND post_id = %(post_id)s
"""

_STORE_SNAPSHOTS = """
    UPDATE post_media
       SET snapshot = new.snapshot
      FROM unnest(%(snapshots)s::bytea[]) WITH ORDINALITY AS new (snapshot, position)
     WHERE shard = %(shard)s AND post_id = %(post_id)s AND post_media.position = new.position
       -- Media that were deleted in the meantime stay deleted.
       AND post_media.snapshot IS NULL
"""

# Answered by post_media_shown.
_SHOWN_MEDIA = """
    SELECT DISTINCT snapshot
      FROM post_media
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot IS NOT NULL
"""

# Matches the old snapshot, so that it does not undo a concurrent deletion. Answered by
# post_media_shown.
_REFRESH_MEDIA = """
    UPDATE post_media
       SET snapshot = %(snapshot)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s AND snapshot = %(shown)s
    RETURNING post_id
"""

# Includes unpublished posts: a concurrent `publish` does not overwrite this snapshot. Answered by
# post_media_shown.
_FORGET_MEDIA = """
    UPDATE post_media
       SET snapshot = %(snapshot)s
     WHERE shard = %(shard)s AND media_id = %(media_id)s
    RETURNING post_id
"""

# The posts that may be in a cache. Includes ARCHIVED ones: `unarchive` may run concurrently,
# without waiting for this transaction. `publish` does wait, because it writes the same rows of
# post_media. Answered by the primary key.
_ONCE_PUBLISHED = """
    SELECT post_id, author_id
      FROM posts
      JOIN unnest(%(shards)s::smallint[], %(post_ids)s::bigint[]) AS wanted (shard, post_id)
           USING (shard, post_id)
     WHERE state IN ('PUBLISHED', 'ARCHIVED')
"""

# The newest posts of thousands of authors. First finds the newest post of each author, with one
# lookup in posts_published each, and keeps the `limit` newest of these: all other authors have no
# posts among the `limit` newest. Then reads the posts of the authors that remain. If there are
# `limit` of them, posts below the oldest of their newest posts cannot be in the result either, so
# this reads little more than it returns.
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

_FIRST_SWEEP = timedelta(seconds=10)
"""The sweep ignores younger posts: their creation and events resolve them."""

_NEXT_SWEEP = timedelta(seconds=30)
"""How long the sweep ignores a post that still waits for its media."""

_LARGEST_ID = (1 << 63) - 1


class State(StrEnum):
    """The state of a post: the names of photomesh.post.v1.PostState without their prefix."""

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
    """In the author's order; empty if the post is DELETED."""
    snapshots: Sequence[StoredMedia]
    """The media as readers see them since the post was PUBLISHED; empty before."""


class PostStore:
    """Posts in PostgreSQL. Every method may raise Unavailable."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def add_post(
        self, author_id: int, media_ids: Sequence[int], caption: str, request_id: str
    ) -> Post | None:
        """Adds a PROCESSING post; returns None if the author has already used the request id."""
        shard = shard_of(author_id)
        async with self._database.transaction() as connection:
            added: list[int] = await fetch(
                connection,
                _ADD_POST,
                {
                    "shard": shard,
                    "author_id": author_id,
                    "caption": caption,
                    "request_id": request_id,
                    "sweep_after": _FIRST_SWEEP,
                },
                scalar_row,
            )
            if not added:
                return None
            [post_id] = added
            await connection.execute(
                _ADD_MEDIA, {"shard": shard, "post_id": post_id, "media_ids": list(media_ids)}
            )
        return Post(post_id, author_id, caption, State.PROCESSING, tuple(media_ids), ())

    async def post_by_request(self, author_id: int, request_id: str) -> Post | None:
        """Returns the post that an author created with a request id; None if the id is empty."""
        found = await self._posts(
            _POST_BY_REQUEST,
            {"shard": shard_of(author_id), "author_id": author_id, "request_id": request_id},
        )
        return found[0] if found else None

    async def post(self, post_id: int) -> Post | None:
        """Returns a post in any state."""
        return (await self.posts([post_id])).get(post_id)

    async def posts(self, post_ids: Sequence[int]) -> dict[int, Post]:
        """Returns those of the posts that exist, in any state, by id."""
        wanted = sorted(set(post_ids))
        if not wanted:
            return {}
        found = await self._posts(
            _POSTS,
            {"shards": int_array(map(shard_of, wanted)), "post_ids": int_array(wanted)},
        )
        return {post.post_id: post for post in found}

    async def posts_awaiting(self, media_id: int) -> list[Post]:
        """Returns the PROCESSING posts that show a media item."""
        values = {"shard": shard_of(media_id), "media_id": media_id}
        posts = await self.posts(await self._database.fetch(_AWAITING, values, scalar_row))
        return [post for post in posts.values() if post.state is State.PROCESSING]

    async def take_unresolved(self, limit: int) -> list[Post]:
        """Returns up to `limit` posts that have been PROCESSING for over 10 s.

        Does not return a post again for 30 s, to any caller.
        """
        values = {"sweep_after": _NEXT_SWEEP, "limit": limit}
        post_ids = await self._database.fetch(_TAKE_UNRESOLVED, values, scalar_row)
        return list((await self.posts(post_ids)).values())

    async def publish(self, post: Post, media: Sequence[StoredMedia]) -> bool:
        """Makes a post PUBLISHED with its media; returns False if it is no longer PROCESSING."""
        async with self._outbox.transaction() as tx:
            if not await _transition(tx.connection, post, State.PROCESSING, State.PUBLISHED):
                return False
            snapshots = [item.SerializeToString() for item in media]
            await tx.connection.execute(_STORE_SNAPSHOTS, {**_key(post), "snapshots": snapshots})
            tx.publish(PostCreated(post_id=post.post_id, author_id=post.author_id))
        return True

    async def fail(self, post: Post) -> None:
        """Makes a post FAILED if it is still PROCESSING."""
        async with self._database.connection() as connection:
            await _transition(connection, post, State.PROCESSING, State.FAILED)

    async def archive(self, post: Post) -> None:
        """Makes a PUBLISHED post ARCHIVED and publishes PostChanged."""
        await self._change(post, State.PUBLISHED, State.ARCHIVED)

    async def unarchive(self, post: Post) -> None:
        """Makes an ARCHIVED post PUBLISHED and publishes PostChanged."""
        await self._change(post, State.ARCHIVED, State.PUBLISHED)

    async def delete(self, post: Post) -> None:
        """Makes a post DELETED and publishes PostChanged, unless it is already DELETED."""
        async with self._outbox.transaction() as tx:
            deleted = await tx.connection.execute(_DELETE, _key(post))
            if deleted.rowcount:
                await tx.connection.execute(_DELETE_MEDIA, _key(post))
                tx.publish(PostChanged(post_id=post.post_id, author_id=post.author_id))

    async def shown_media(self, media_id: int) -> list[StoredMedia]:
        """Returns the distinct snapshots of a media item that posts contain."""
        values = {"shard": shard_of(media_id), "media_id": media_id}
        snapshots = await self._database.fetch(_SHOWN_MEDIA, values, scalar_row)
        return [StoredMedia.FromString(snapshot) for snapshot in snapshots]

    async def refresh_media(self, shown: StoredMedia, media: StoredMedia) -> None:
        """Replaces a snapshot of a media item in all posts; publishes PostChanged for each."""
        await self._replace_snapshots(
            _REFRESH_MEDIA,
            {
                "shard": shard_of(media.media_id),
                "media_id": media.media_id,
                "shown": shown.SerializeToString(),
                "snapshot": media.SerializeToString(),
            },
        )

    async def forget_media(self, deleted: StoredMedia) -> list[Post]:
        """Replaces all snapshots of a deleted media item; publishes PostChanged for each post.

        Returns these posts, including those that are not published yet.
        """
        post_ids = await self._replace_snapshots(
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

        Returns only ids below `before` (0: from the newest). `author_ids` may contain duplicates.
        """
        wanted = sorted(set(author_ids))
        values = {
            "shards": int_array(map(shard_of, wanted)),
            "author_ids": int_array(wanted),
            "before_post_id": before or _LARGEST_ID,
            "limit": limit,
        }
        return await self._database.fetch(_RECENT, values, scalar_row)

    async def _change(self, post: Post, before: State, after: State) -> None:
        async with self._outbox.transaction() as tx:
            if await _transition(tx.connection, post, before, after):
                tx.publish(PostChanged(post_id=post.post_id, author_id=post.author_id))

    async def _replace_snapshots(
        self, query: LiteralString, values: dict[str, object]
    ) -> list[int]:
        """Returns the ids of changed posts, and publishes PostChanged for those once published."""
        async with self._outbox.transaction() as tx:
            post_ids: list[int] = await fetch(tx.connection, query, values, scalar_row)
            published = await tx.connection.execute(
                _ONCE_PUBLISHED,
                {"shards": int_array(map(shard_of, post_ids)), "post_ids": int_array(post_ids)},
            )
            for post_id, author_id in await published.fetchall():
                tx.publish(PostChanged(post_id=post_id, author_id=author_id))
        return post_ids

    async def _posts(self, query: LiteralString, values: dict[str, object]) -> list[Post]:
        # In text format, a hundred posts with their snapshots would take twice as long: 5 ms.
        return await self._database.fetch(query, values, kwargs_row(_to_post), binary=True)


async def _transition(connection: AsyncConnection, post: Post, before: State, after: State) -> bool:
    """Changes a post's state from `before` to `after`; returns False if it is not in `before`."""
    values = {**_key(post), "before": before, "after": after}
    return (await connection.execute(_TRANSITION, values)).rowcount > 0


def _key(post: Post) -> dict[str, int]:
    return {"shard": shard_of(post.post_id), "post_id": post.post_id}


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
