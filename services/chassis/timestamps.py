"""Timestamps in messages."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp


def to_timestamp(moment: datetime) -> Timestamp:
    """Returns a moment as a protobuf message."""
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
