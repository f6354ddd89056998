"""`python -m services.feed`: wires the feed service and serves it."""

from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.chassis import config
from services.chassis.cache.client import connect
from services.chassis.rpc.client import channel
from services.chassis.rpc.paging import PageTokens, read_key
from services.chassis.rpc.rest import RestMethod, RestServer
from services.chassis.rpc.server import Service, Worker, run, serve
from services.chassis.telemetry import logs
from services.domain.post_cache import Form
from services.domain.timelines import AuthorTimelines, HomeTimelines
from services.feed.admin import FeedAdminService
from services.feed.authors import HotAuthors
from services.feed.config import FeedSettings
from services.feed.home import HomeFeed
from services.feed.hydration import Hydration
from services.feed.peers import Peers
from services.feed.service import FeedService
from services.feed.skeleton import Skeletons
from services.feed.watching.hub import Hub
from services.feed.watching.messages import WatchLimits
from services.feed.watching.pulled_authors import PulledAuthors
from services.feed.watching.watches import Watches


async def main() -> None:
    settings = config.load(FeedSettings)
    logs.configure("feed", settings.log_level)
    async with (
        connect(settings) as cache,
        channel("graph", settings.peer_graph, settings.tls_dir) as graph,
        channel("post", settings.peer_post, settings.tls_dir) as post,
    ):
        peers = Peers(GraphInternalServiceStub(graph), PostInternalServiceStub(post))
        timelines, author_timelines = HomeTimelines(cache), AuthorTimelines(cache)
        authors = HotAuthors(author_timelines, peers)
        skeletons = Skeletons(timelines, authors, peers)
        hydration = {form: Hydration(cache, peers, form) for form in Form}
        pulled_authors = PulledAuthors(author_timelines, authors)
        hub = Hub(timelines, pulled_authors, skeletons, hydration[Form.PROTO])
        watches = Watches(hub, skeletons, hydration[Form.PROTO], WatchLimits())
        page_tokens = PageTokens(
            read_key(settings.page_key_file), "photomesh.feed.v1.FeedService.GetFeed"
        )
        service = FeedService(HomeFeed(skeletons, hydration), page_tokens, watches)
        admin = FeedAdminService(timelines, skeletons, peers)
        await serve(
            settings,
            [
                Service("photomesh.feed.v1.FeedService", service),
                Service("photomesh.feed.v1.FeedAdminService", admin),
            ],
            [Worker("watches", hub.run)],
            rest=RestServer(
                settings.rest_listen,
                settings.tls_dir,
                [RestMethod("photomesh.feed.v1.FeedService.GetFeed", service.feed_as_json)],
            ),
            before_drain=hub.drain,
        )


run(main)
