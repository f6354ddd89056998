"""The Kafka topics: one place that names them all."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A topic and its number of partitions."""

    name: str
    partitions: int = 8


MEDIA_UPLOADED = Topic("media_uploaded")
MEDIA_PROCESSED = Topic("media_processed")
MEDIA_DELETED = Topic("media_deleted")
POST_CREATED = Topic("post_created")
POST_CHANGED = Topic("post_changed")
FOLLOW_CHANGED = Topic("follow_changed")
CELEBRITY_CHANGED = Topic("celebrity_changed")
FANOUT_CHUNKS = Topic("fanout_chunks")


def dead_letters(topic: Topic) -> Topic:
    """Returns where events of `topic` go that cannot be handled."""
    return Topic(f"{topic.name}.dlq", partitions=1)


_EVENTS = (
    MEDIA_UPLOADED,
    MEDIA_PROCESSED,
    MEDIA_DELETED,
    POST_CREATED,
    POST_CHANGED,
    FOLLOW_CHANGED,
    CELEBRITY_CHANGED,
    FANOUT_CHUNKS,
)

TOPICS = (*_EVENTS, *(dead_letters(topic) for topic in _EVENTS))
"""Every topic that provisioning makes."""
