"""The media worker: makes the variants of every uploaded photo."""

GROUP = "media-worker"
"""The worker's consumer group."""
