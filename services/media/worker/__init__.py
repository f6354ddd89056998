"""The media worker: makes the variants of every uploaded photo."""
