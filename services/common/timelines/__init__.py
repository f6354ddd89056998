"""Timelines in Valkey: fanout pushes posts into them, feed reads them. See layout.py."""

from services.common.timelines.authors import AuthorTimelines
from services.common.timelines.home import HomeSlice, HomeTimelines
from services.common.timelines.layout import CAP, Extent, Slice
from services.common.timelines.shared import Signature

__all__ = [
    "CAP",
    "AuthorTimelines",
    "Extent",
    "HomeSlice",
    "HomeTimelines",
    "Signature",
    "Slice",
]
