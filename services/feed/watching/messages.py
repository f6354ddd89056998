"""The messages that watchers receive, and the limits of watches."""

from dataclasses import dataclass

from photomesh.feed.v1.feed_service_pb2 import WatchFeedEnd


@dataclass(frozen=True)
class WatchLimits:
    """Limits on watches."""

    max_open: int = 2_500
    """Maximum number of open watches in this process."""
    max_per_reader: int = 5
    """Maximum number of open watches per reader."""
    seconds: float = 1_800.0
    """How long a watch lasts, plus or minus 10 %, so that watches that began together do not all
    restart together."""
    heartbeat_seconds: float = 15.0
    """Maximum time between two messages."""
    max_queued: int = 100
    """Maximum number of posts queued for a slow watcher."""
    patience_seconds: float = 30.0
    """How long a client may take to read the last message before the call is canceled."""


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """A message to a watcher. The first message and heartbeats have neither a post nor an end."""

    resume_after: int
    """The id from which a client that has received this message can resume."""
    post: bytes = b""
    """A serialized photomesh.post.v1.Post."""
    post_id: int = 0
    end: WatchFeedEnd.ValueType = WatchFeedEnd.WATCH_FEED_END_UNSPECIFIED
