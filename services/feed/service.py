"""The feed service's methods, in the order of its contract."""

from typing import Any

import grpc
from photomesh.feed.v1 import feed_service_pb2 as pb
from photomesh.feed.v1.feed_service_pb2_grpc import FeedServiceServicer
from photomesh.post.v1.post_service_pb2 import Post

from services.common.context import signed_in
from services.common.paging import PageTokens
from services.feed.home import HomeFeed

_DEFAULT_PAGE_SIZE = 20

Context = grpc.aio.ServicerContext[Any, Any]


class FeedService(FeedServiceServicer):
    """The home feed, for people."""

    def __init__(self, home: HomeFeed, page_tokens: PageTokens) -> None:
        self._home = home
        self._page_tokens = page_tokens

    async def GetFeed(self, request: pb.GetFeedRequest, context: Context) -> pb.GetFeedResponse:
        reader_id = signed_in()
        before = self._page_tokens.open(request.page_token, reader_id) if request.page_token else 0
        page = await self._home.page(reader_id, before, request.page_size or _DEFAULT_PAGE_SIZE)
        return pb.GetFeedResponse(
            posts=[Post.FromString(post) for post in page.posts],
            next_page_token=self._page_tokens.seal(page.last_id, reader_id) if page.last_id else "",
            state=page.state,
        )
