"""Resolves posts: PUBLISHED when all their media are READY, FAILED when one FAILED.

A post is resolved right after its creation, or when one of its media becomes READY or FAILED. A
sweep resolves the rest, in case a process died before it could. All of these may run concurrently
on several replicas; the store lets only the first one change the post.
"""

from collections.abc import Sequence

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import MediaState

from services.chassis.telemetry import logs
from services.post.peers import Peers
from services.post.store import Post, PostStore, State

_LOST = (MediaState.MEDIA_STATE_FAILED, MediaState.MEDIA_STATE_DELETED)

_log = logs.logger(__name__)


class Resolver:
    """Resolves posts."""

    def __init__(self, store: PostStore, peers: Peers) -> None:
        self._store = store
        self._peers = peers

    async def media_of(self, post: Post) -> Sequence[StoredMedia]:
        """Returns a post's media: the snapshots once it is published, else the current media.

        Raises:
            Unavailable: the post is not published, and media is unavailable, slow or overloaded.
        """
        if post.state in (State.PROCESSING, State.FAILED):
            return await self._peers.media(post.media_ids)
        return post.snapshots

    async def resolve(self, post: Post) -> tuple[Post, Sequence[StoredMedia]]:
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
        # Another process may have resolved the post; read the result.
        return await self._store.post(post.post_id) or post, media


def _is_lost(item: StoredMedia) -> bool:
    """Reports whether a media item can never become READY: it FAILED, or no longer exists."""
    return item.state in _LOST or not item.media_id
