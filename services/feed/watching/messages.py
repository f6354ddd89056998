"""What watchers receive, and the limits of watches."""

from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd


@dataclass(frozen=True)
class WatchLimits:
    """Limits on watches."""

    most: int = 2_500
    """Maximum number of open watches in this process."""
    of_one_reader: int = 5
    """Maximum number of open watches per reader."""
    seconds: float = 1_800.0
    """How long a watch lasts, plus or minus 10 %, so that watches that began together do not all
    restart together."""
    heartbeat_seconds: float = 15.0
    """Maximum time between two messages."""
    waiting: int = 100
    """Maximum number of posts queued for a slow watcher."""
    patience_seconds: float = 30.0
    """How long the last message waits to be read before the call is canceled."""


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """A message to a watcher. With neither a post nor an end: the first one, or a heartbeat."""

    resume_after: int
    """The id to resume after, once this message is received."""
    post: bytes = b""
    """A serialized photomesh.post.v1.Post."""
    post_id: int = 0
    end: WatchFeedEnd.ValueType = WatchFeedEnd.WATCH_FEED_END_UNSPECIFIED
