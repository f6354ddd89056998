"""`python -m services.feed`: wires the feed service and serves it."""

from photomesh.feed.v1.feed_service_pb2_grpc import add_FeedServiceServicer_to_server
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.common import config, logs
from services.common.cache import connect
from services.common.client import channel
from services.common.paging import PageTokens, read_key
from services.common.post_cache import PostCache
from services.common.server import PUBLIC, Service, run, serve
from services.common.timelines import HomeTimelines
from services.feed.config import FeedSettings
from services.feed.home import HomeFeed
from services.feed.service import FeedService


async def main() -> None:
    settings = config.load(FeedSettings)
    logs.configure("feed", settings.log_level)
    async with (
        connect(settings) as cache,
        channel("graph", settings.peer_graph, settings.tls_dir) as graph,
        channel("post", settings.peer_post, settings.tls_dir) as post,
    ):
        service = FeedService(
            HomeFeed(
                HomeTimelines(cache),
                PostCache(cache),
                GraphInternalServiceStub(graph),
                PostInternalServiceStub(post),
            ),
            PageTokens(read_key(settings.page_key_file), "photomesh.feed.v1.FeedService.GetFeed"),
        )
        await serve(
            settings,
            [
                Service(
                    "photomesh.feed.v1.FeedService",
                    lambda server: add_FeedServiceServicer_to_server(service, server),
                    callers=PUBLIC,
                )
            ],
        )


run(main)
