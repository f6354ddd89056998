"""The post service's internal methods, in the order of the contract."""

from photomesh.post.v1 import post_internal_service_pb2 as pb
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceServicer

from services.chassis.rpc import Context
from services.post.presenter import Presenter
from services.post.store import PostStore, State


class PostInternalService(PostInternalServiceServicer):
    """Posts: the internal methods."""

    def __init__(self, store: PostStore, presenter: Presenter) -> None:
        self._store = store
        self._presenter = presenter

    async def BatchGetPosts(
        self, request: pb.BatchGetPostsRequest, context: Context
    ) -> pb.BatchGetPostsResponse:
        found = await self._store.posts(request.post_ids)
        published = {
            post_id: post for post_id, post in found.items() if post.state is State.PUBLISHED
        }
        return await self._presenter.present_all(map(published.get, request.post_ids))

    async def ListRecentByAuthors(
        self, request: pb.ListRecentByAuthorsRequest, context: Context
    ) -> pb.ListRecentByAuthorsResponse:
        post_ids = await self._store.recent(
            request.author_ids, before=request.before_post_id, limit=request.limit
        )
        return pb.ListRecentByAuthorsResponse(post_ids=post_ids)
