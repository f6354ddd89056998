"""Timelines in Valkey: fanout pushes posts into them, feed reads them. See layout.py."""

from services.domain.timelines.authors import AuthorTimelines
from services.domain.timelines.home import HomeSlice, HomeTimelines
from services.domain.timelines.layout import CAP, Extent, Slice
from services.domain.timelines.shared import Signature

__all__ = [
    "CAP",
    "AuthorTimelines",
    "Extent",
    "HomeSlice",
    "HomeTimelines",
    "Signature",
    "Slice",
]
