"""`python -m services.fanout`: wires the fan-out worker and runs it."""

from photomesh.graph.v1.events_pb2 import FollowChanged
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.post.v1.events_pb2 import PostCreated
from photomesh.post.v1.post_internal_service_pb2_grpc import PostInternalServiceStub

from services.common import config, logs, topics
from services.common.cache import connect
from services.common.client import channel
from services.common.consumer import Consumer, Subscription
from services.common.server import Worker, run, serve
from services.common.timelines import HomeTimelines
from services.fanout.config import FanoutSettings
from services.fanout.worker import Fanout


async def main() -> None:
    settings = config.load(FanoutSettings)
    logs.configure("fanout", settings.log_level)
    async with (
        connect(settings) as cache,
        channel("graph", settings.peer_graph, settings.tls_dir) as graph,
        channel("post", settings.peer_post, settings.tls_dir) as post,
    ):
        fanout = Fanout(
            HomeTimelines(cache), GraphInternalServiceStub(graph), PostInternalServiceStub(post)
        )
        consumer = Consumer(
            settings,
            group="fanout",
            subscriptions=[
                Subscription(topics.POST_CREATED, PostCreated, fanout.post_created),
                Subscription(topics.FOLLOW_CHANGED, FollowChanged, fanout.follow_changed),
            ],
        )
        await serve(settings, services=[], workers=[Worker("consumer", consumer.run)])


run(main)
