"""The post service's public methods, in the order of the contract."""

import asyncio
from collections.abc import Awaitable, Sequence

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import MediaFailure, MediaState
from photomesh.post.v1 import post_service_pb2 as pb
from photomesh.post.v1.post_service_pb2_grpc import PostServiceServicer

from services.chassis.context import signed_in
from services.chassis.errors import RequestIdReused, Unavailable
from services.chassis.rpc import Context
from services.chassis.telemetry import logs
from services.domain.errors import MediaUnknown
from services.domain.post_cache import PostCache
from services.post.errors import MediaFailed, MediaNotUploaded, PostNotPublished, PostUnknown
from services.post.peers import Peers
from services.post.presenter import Presenter
from services.post.resolver import Resolver
from services.post.store import Post, PostStore, State

_CACHE_SECONDS = 0.3
"""Maximum time that a call waits for a cache update."""

_log = logs.logger(__name__)


class PostService(PostServiceServicer):
    """Posts: the public methods."""

    def __init__(
        self,
        store: PostStore,
        peers: Peers,
        resolver: Resolver,
        presenter: Presenter,
        cache: PostCache,
    ) -> None:
        self._store = store
        self._peers = peers
        self._resolver = resolver
        self._presenter = presenter
        self._cache = cache

    async def CreatePost(
        self, request: pb.CreatePostRequest, context: Context
    ) -> pb.CreatePostResponse:
        author_id = signed_in()
        # Check for a retry first: for a retry, the current state of the media does not matter.
        post = await self._made_before(author_id, request)
        if post is not None:
            post, media = await self._resolver.resolve(post)
        else:
            media = await self._peers.media(request.media_ids)
            _check(media, request.media_ids, author_id)
            post = await self._make(author_id, request)
            # Query media again: handlers of events that arrived before the post was stored did not
            # find it.
            try:
                post, media = await self._resolver.resolve(post)
            except Exception:
                # The post is stored; an event or the sweep resolves it.
                _log.warning("post.resolve_failed", post_id=post.post_id, exc_info=True)
        return pb.CreatePostResponse(post=await self._presenter.present(post, media))

    async def GetPost(self, request: pb.GetPostRequest, context: Context) -> pb.GetPostResponse:
        caller_id = signed_in()
        post = await self._store.post(request.post_id)
        if post is None or not await self._may_see(caller_id, post):
            raise PostUnknown(request.post_id)
        return pb.GetPostResponse(post=await self._present(post))

    async def ArchivePost(
        self, request: pb.ArchivePostRequest, context: Context
    ) -> pb.ArchivePostResponse:
        post = await self._own(request.post_id)
        if post.state in (State.PROCESSING, State.FAILED):
            raise PostNotPublished(post.post_id)
        await self._store.archive(post)
        await self._update_cache(post, self._cache.withdraw([post.post_id]))
        # If the post was unarchived concurrently, the withdrawal may have overwritten that change.
        post = await self._own(request.post_id)
        if post.state is State.PUBLISHED:
            await self._update_cache(post, self._cache.forget([post.post_id]))
        return pb.ArchivePostResponse(post=await self._present(post))

    async def UnarchivePost(
        self, request: pb.UnarchivePostRequest, context: Context
    ) -> pb.UnarchivePostResponse:
        post = await self._own(request.post_id)
        await self._store.unarchive(post)
        await self._update_cache(post, self._cache.forget([post.post_id]))
        post = await self._own(request.post_id)
        return pb.UnarchivePostResponse(post=await self._present(post))

    async def DeletePost(
        self, request: pb.DeletePostRequest, context: Context
    ) -> pb.DeletePostResponse:
        post = await self._store.post(request.post_id)
        if post is None or post.author_id != signed_in():
            raise PostUnknown(request.post_id)
        await self._store.delete(post)
        await self._update_cache(post, self._cache.withdraw([post.post_id]))
        return pb.DeletePostResponse()

    async def _may_see(self, caller_id: int, post: Post) -> bool:
        """Reports whether a caller may see a post.

        Raises:
            Unavailable: graph is unavailable, and the post is someone else's. A post that may be
                hidden is not shown.
        """
        if post.state is State.DELETED:
            return False
        if post.author_id == caller_id:
            return True
        if post.state is not State.PUBLISHED:
            return False
        return await self._peers.is_visible(post.author_id, caller_id)

    async def _own(self, post_id: int) -> Post:
        """Returns a post of the caller.

        Raises:
            PostUnknown: there is no such post, it was deleted, or it is someone else's.
        """
        post = await self._store.post(post_id)
        if post is None or post.author_id != signed_in() or post.state is State.DELETED:
            raise PostUnknown(post_id)
        return post

    async def _present(self, post: Post) -> pb.Post:
        return await self._presenter.present(post, await self._resolver.media_of(post))

    async def _update_cache(self, post: Post, change: Awaitable[None]) -> None:
        """Applies a change to the cache before the author's call returns.

        If the cache is unavailable, logs that. Readers cannot get stale copies meanwhile; after the
        cache recovers, fanout corrects them when it handles the event, which was stored with the
        change.
        """
        try:
            async with asyncio.timeout(_CACHE_SECONDS):
                await change
        except (Unavailable, TimeoutError) as error:
            _log.warning("post_cache.failed", post_id=post.post_id, error=repr(error))

    async def _made_before(self, author_id: int, request: pb.CreatePostRequest) -> Post | None:
        """Returns the post that an earlier attempt of this request made.

        Raises:
            RequestIdReused: the author used the request id for another request.
        """
        post = await self._store.post_by_request(author_id, request.request_id)
        # A deleted post has no content left to compare.
        if (
            post
            and post.state is not State.DELETED
            and not (
                post.caption == request.caption and list(post.media_ids) == list(request.media_ids)
            )
        ):
            raise RequestIdReused
        return post

    async def _make(self, author_id: int, request: pb.CreatePostRequest) -> Post:
        added = await self._store.add_post(
            author_id, request.media_ids, request.caption, request.request_id
        )
        # None: a concurrent attempt of the same request added the post.
        post = added or await self._made_before(author_id, request)
        assert post is not None  # noqa: S101 -- The rows of deleted posts are kept.
        return post


def _check(media: Sequence[StoredMedia], media_ids: Sequence[int], author_id: int) -> None:
    """Checks that an author can post media.

    Raises:
        MediaUnknown: a media item does not exist, or is not the author's.
        MediaNotUploaded: an upload is not completed; the error's fields list the media.
        MediaFailed: a media item failed processing; the error's fields list the media.
    """
    for index, item in enumerate(media):
        if item.owner_id != author_id or item.state == MediaState.MEDIA_STATE_DELETED:
            raise MediaUnknown(media_ids[index], field=f"media_ids[{index}]")
    if failed := {
        f"media_ids[{index}]": f"cannot be processed: {_reason(item)}"
        for index, item in enumerate(media)
        if item.state == MediaState.MEDIA_STATE_FAILED
    }:
        raise MediaFailed(failed)
    if pending := {
        f"media_ids[{index}]": "is not uploaded; complete the upload"
        for index, item in enumerate(media)
        if item.state == MediaState.MEDIA_STATE_PENDING
    }:
        raise MediaNotUploaded(pending)


def _reason(item: StoredMedia) -> str:
    return MediaFailure.Name(item.failure).removeprefix("MEDIA_FAILURE_")
