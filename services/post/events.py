"""The post service's event handlers."""

from photomesh.media.v1.events_pb2 import MediaDeleted, MediaProcessed
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import MediaState

from services.chassis.database.ids import created_at
from services.chassis.timestamps import to_timestamp
from services.post.peers import Peers
from services.post.resolver import Resolver
from services.post.store import PostStore


class Events:
    """Handles events. Each event can arrive more than once."""

    def __init__(self, store: PostStore, peers: Peers, resolver: Resolver) -> None:
        self._store = store
        self._peers = peers
        self._resolver = resolver

    async def on_media_processed(self, event: MediaProcessed) -> None:
        """Resolves the posts that wait for a media item that is now READY or FAILED.

        If the item was processed again, updates its variants in the posts that already show it.
        """
        for post in await self._store.posts_awaiting(event.media_id):
            await self._resolver.resolve(post)
        if shown := await self._store.shown_media(event.media_id):
            [media] = await self._peers.media([event.media_id])
            for before in shown:
                ready = media.state == before.state == MediaState.MEDIA_STATE_READY
                if ready and media != before:
                    await self._store.refresh_media(before, media)

    async def on_media_deleted(self, event: MediaDeleted) -> None:
        """Replaces a deleted media item in the posts that show it; fails those that wait for it."""
        deleted = StoredMedia(
            media_id=event.media_id,
            owner_id=event.owner_id,
            state=MediaState.MEDIA_STATE_DELETED,
            create_time=to_timestamp(created_at(event.media_id)),
        )
        for post in await self._store.forget_media(deleted):
            await self._resolver.resolve(post)
