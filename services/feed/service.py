"""The feed service's methods, in the order of the contract."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from photomesh.feed.v1 import feed_service_pb2 as pb

from services.chassis.context import signed_in
from services.chassis.rpc import Context
from services.chassis.rpc.paging import PageTokens
from services.chassis.wire import varint
from services.domain.post_cache import Form
from services.feed.home import HomeFeed, Page
from services.feed.watching.messages import WatchMessage
from services.feed.watching.watches import Watches

_DEFAULT_PAGE_SIZE = 20

# The wire tag of GetFeedResponse.posts and WatchFeedResponse.post: field 1, length-delimited.
_POST_TAG = b"\x0a"


class FeedService:
    """The home feed: the public API."""

    def __init__(self, home: HomeFeed, page_tokens: PageTokens, watches: Watches) -> None:
        self._home = home
        self._watches = watches
        self._page_tokens = page_tokens

    async def GetFeed(self, request: pb.GetFeedRequest, context: Context) -> bytes:
        page, next_page_token = await self._page(request, Form.PROTO)
        rest = pb.GetFeedResponse(next_page_token=next_page_token, state=page.state)
        # Copies posts into the response as bytes: parsing them would be the most expensive step.
        posts = (part for post in page.posts for part in (_POST_TAG, varint(len(post)), post))
        return b"".join([*posts, rest.SerializeToString()])

    async def WatchFeed(
        self, request: pb.WatchFeedRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async with aclosing(self._watches.watch(signed_in(), request.after_post_id)) as messages:
            async for message in messages:
                yield _serialize(message)

    async def feed_as_json(self, request: pb.GetFeedRequest) -> bytes:
        """Returns GetFeed's response as JSON, for REST without gRPC."""
        page, next_page_token = await self._page(request, Form.JSON)
        # Tokens are base64 and states are names: neither needs escaping.
        return b'{"posts":[%s],"nextPageToken":"%s","state":"%s"}' % (
            b",".join(page.posts),
            next_page_token.encode(),
            pb.FeedState.Name(page.state).encode(),
        )

    async def _page(self, request: pb.GetFeedRequest, form: Form) -> tuple[Page, str]:
        reader_id = signed_in()
        before = self._page_tokens.open(request.page_token, reader_id) if request.page_token else 0
        size = request.page_size or _DEFAULT_PAGE_SIZE
        page = await self._home.page(reader_id, before, size, form)
        return page, self._page_tokens.seal(page.last_id, reader_id) if page.last_id else ""


def _serialize(message: WatchMessage) -> bytes:
    """Returns a serialized WatchFeedResponse."""
    response = pb.WatchFeedResponse(resume_after_post_id=message.resume_after)
    if message.end:
        response.end = message.end
    rest = response.SerializeToString()
    if not message.post:
        return rest
    return b"".join((_POST_TAG, varint(len(message.post)), message.post, rest))
