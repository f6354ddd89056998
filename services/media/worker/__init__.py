"""The media worker, which makes the variants of every uploaded photo."""
