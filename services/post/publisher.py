"""Settles posts: PUBLISHED when all their media are READY, FAILED when one FAILED.

A post is settled right after its creation, or when one of its media becomes READY or FAILED. A
sweep settles the rest, in case the process died in between. These may run at any time, on several
replicas at once; the store lets only the first one change the post.
"""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed
from photomesh.media.v1.media_internal_service_pb2 import BatchGetMediaRequest, StoredMedia
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub
from photomesh.media.v1.media_service_pb2 import MediaState

from services.chassis.database.ids import created_at
from services.chassis.errors import Unavailable
from services.chassis.rpc import client
from services.chassis.telemetry import logs
from services.post.store import Post, PostStore, State

_SWEEP_BATCH = 100

_LOST = (MediaState.MEDIA_STATE_FAILED, MediaState.MEDIA_STATE_DELETED)

_log = logs.logger(__name__)


class Publisher:
    """Settles posts."""

    def __init__(self, store: PostStore, media: MediaInternalServiceStub) -> None:
        self._store = store
        self._media = media

    async def media(self, media_ids: Sequence[int]) -> Sequence[StoredMedia]:
        """Returns the current media; an unknown one has no `media_id`.

        Raises:
            Unavailable: media is unavailable, slow or overloaded.
        """
        answer = await client.call(
            self._media.BatchGetMedia, BatchGetMediaRequest(media_ids=media_ids)
        )
        return answer.media

    async def media_of(self, post: Post) -> Sequence[StoredMedia]:
        """Returns a post's media: the snapshots once it is published, else the current media.

        Raises:
            Unavailable: the post is not published, and media is unavailable, slow or overloaded.
        """
        if post.state in (State.PROCESSING, State.FAILED):
            return await self.media(post.media_ids)
        return post.snapshots

    async def settle(self, post: Post) -> tuple[Post, Sequence[StoredMedia]]:
        """Publishes or fails a PROCESSING post if the state of its media allows it.

        Returns the post and its media after that.

        Raises:
            Unavailable: media or the database is unavailable; the post is unchanged.
        """
        media = await self.media_of(post)
        if post.state is not State.PROCESSING:
            return post, media
        if any(_is_lost(item) for item in media):
            await self._store.fail(post)
        elif all(item.state == MediaState.MEDIA_STATE_READY for item in media):
            if await self._store.publish(post, media):
                _log.info("post.published", post_id=post.post_id, author_id=post.author_id)
        else:
            return post, media
        # Another process may have settled the post; read the result.
        settled = await self._store.post(post.post_id)
        return settled or post, media

    async def on_media_processed(self, event: MediaProcessed) -> None:
        """Settles the posts that wait for a media item that is now READY or FAILED.

        If the item was processed again, updates the posts that already show it to its new variants.
        """
        for post in await self._store.posts_awaiting(event.media_id):
            await self.settle(post)
        if shown := await self._store.shown_media(event.media_id):
            [media] = await self.media([event.media_id])
            for before in shown:
                ready = media.state == before.state == MediaState.MEDIA_STATE_READY
                if ready and media != before:
                    await self._store.refresh_media(before, media)

    async def on_media_deleted(self, event: MediaDeleted) -> None:
        """Replaces a deleted media item in the posts that show it; fails those that wait for it."""
        create_time = Timestamp()
        create_time.FromDatetime(created_at(event.media_id))
        deleted = StoredMedia(
            media_id=event.media_id,
            owner_id=event.owner_id,
            state=MediaState.MEDIA_STATE_DELETED,
            create_time=create_time,
        )
        for post in await self._store.forget_media(deleted):
            await self.settle(post)

    async def sweep(self) -> None:
        """Settles posts that have been PROCESSING for over 10 s, unless swept in the last 30 s.

        Raises:
            Unavailable: media or the database is unavailable; the next sweeps settle the rest.
        """
        while posts := await self._store.take_unsettled(_SWEEP_BATCH):
            for post in posts:
                try:
                    await self.settle(post)
                except Unavailable:
                    raise
                except Exception:
                    # A post that cannot be settled must not block the others.
                    _log.exception("post.settle_failed", post_id=post.post_id)
            if len(posts) < _SWEEP_BATCH:
                return


def _is_lost(item: StoredMedia) -> bool:
    """Reports whether a media item can never become READY: it FAILED, or no longer exists."""
    return item.state in _LOST or not item.media_id
