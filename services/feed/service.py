"""The feed service's methods, in the order of its contract."""

from typing import Any

import grpc
from photomesh.feed.v1 import feed_service_pb2 as pb

from services.common.context import signed_in
from services.common.paging import PageTokens
from services.feed.home import HomeFeed, Page

_DEFAULT_PAGE_SIZE = 20

# How GetFeedResponse.posts begins on the wire: field 1, length-delimited.
_POSTS_TAG = b"\x0a"

Context = grpc.aio.ServicerContext[Any, Any]


class FeedService:
    """The home feed, for people."""

    def __init__(self, home: HomeFeed, page_tokens: PageTokens) -> None:
        self._home = home
        self._page_tokens = page_tokens

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the methods, whose answers are serialised already."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetFeed": grpc.unary_unary_rpc_method_handler(
                self.GetFeed, request_deserializer=pb.GetFeedRequest.FromString
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("photomesh.feed.v1.FeedService", methods),)
        )

    async def GetFeed(self, request: pb.GetFeedRequest, context: Context) -> bytes:
        reader_id = signed_in()
        before = self._page_tokens.open(request.page_token, reader_id) if request.page_token else 0
        page = await self._home.page(reader_id, before, request.page_size or _DEFAULT_PAGE_SIZE)
        return _serialise(
            page,
            self._page_tokens.seal(page.last_id, reader_id) if page.last_id else "",
        )


def _serialise(page: Page, next_page_token: str) -> bytes:
    """Returns a GetFeedResponse. Posts go into it as they are, for parsing them takes longest."""
    parts: list[bytes] = []
    for post in page.posts:
        parts += (_POSTS_TAG, _varint(len(post)), post)
    parts.append(
        pb.GetFeedResponse(next_page_token=next_page_token, state=page.state).SerializeToString()
    )
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
