"""Follows, follow requests, blocks and mutes between accounts."""
