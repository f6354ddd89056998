"""The layout of timelines in Valkey.

A timeline is a list of post ids, newest first. It holds the newest `CAP` ids, or slightly more.

* `feed1:{<account>}` is a home timeline. It exists only for accounts that have read their feed in
  the last 30 days.
* `author1:{<account>}` is an author timeline. It exists only while readers need it: the followers
  of a celebrity read the celebrity's posts from it.

Three properties hold:

* A timeline has no gaps: it contains every post that belongs to it and is newer than its oldest
  member. Readers fetch older posts from the database, with the same cursor.
* If the last member is `start`, no older posts exist. Trimming removes `start` first.
* During a rebuild, the last member is a marker that identifies the rebuild. Pushes insert before
  it, so no post is lost; readers ignore the timeline. Deleting the key also deletes the marker, and
  then the scripts reject the outdated result of the rebuild.

The timelines are lists and not sorted sets, because nearly every pushed post is the newest and
belongs at the head. There, a push into a list takes a third less time than into a packed sorted
set, which the server scans. The scripts insert other posts at their position. With all overhead, an
entry takes 11.4 bytes in a list, 12.2 in a packed sorted set, and 80 in a skip list, in which ZADD
is fast: for 500 million feeds 2.7, 2.8 and 18 TiB (`make bench BENCH=memory`).

A member is `2**63 - 1 - post_id` in 19 digits, so the newest post has the smallest member. Scripts
compare members as text; digits sort before the letters with which `start` and markers begin.

`rules1:{<account>}` is a hash that belongs to a home timeline. It holds rules for some authors:

* `p`: pull. Readers also read this author's own timeline.
* `h`: hide. The reader unfollowed or muted this author, whose posts can still be in the list or
  arrive there.

The fields `v` and `s` hold versions of the account's relations in graph: `v` of the last hide, `s`
of the last show. The scripts reject a show with relations older than `v`, and a hide with relations
older than `s`. Such late commands come from callers that the cache or the network delayed. List and
hash are valid only together: if the cache evicts one, the timeline is rebuilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from services.chassis.cache import scripts

FEED = "feed1"
RULES = "rules1"
AUTHOR = "author1"
"""The key spaces. The number is the layout's version, so that two releases can run side by side.

Raise it with every change after which a process of the previous release would misread or damage a
key: another type, or another format of members, markers or rules. Raise `FEED` and `RULES`
together. A release uses only keys of its own version; older keys expire.

A push changes only keys of the version of the process that pushes, and a timeline that misses a
push is not repaired. So replace fanout and graph, which write, before feed, which rebuilds missing
timelines: until feed is replaced, feeds lack new posts and rules. To avoid that, first roll out a
release that reads the old version and writes both. Before a rollback, delete the keys of the old
version.
"""

CAP = 500
"""How many entries trimming keeps."""

_MAX_LENGTH = CAP + 20
"""A longer timeline is trimmed. Trimming takes as long as a push."""

MARKER = b"rebuild:"
"""The prefix of rebuild markers."""

START = b"start"
"""The last member of a timeline that holds all posts."""

PULL = b"p"
HIDE = b"h"

_LARGEST_ID = (1 << 63) - 1


class Extent(Enum):
    """How far back a timeline or a slice of it reaches."""

    ABSENT = auto()
    """There is no timeline."""
    REBUILDING = auto()
    """A rebuild is in progress; the content is not usable."""
    PARTIAL = auto()
    """Older posts can exist: in the database or, for a slice, later in the timeline."""
    WHOLE = auto()
    """The timeline holds all posts."""


@dataclass(frozen=True)
class Slice:
    """Part of a timeline."""

    post_ids: Sequence[int]
    """Newest first. Fewer than requested only at the end of the timeline."""
    extent: Extent


def script(name: str) -> scripts.Script:
    """Loads a script from the folder `lua`."""
    return scripts.load(
        Path(__file__).parent / "lua" / f"{name}.lua",
        {
            "FEED": FEED,
            "RULES": RULES,
            "AUTHOR": AUTHOR,
            "CAP": CAP,
            "MAX_LENGTH": _MAX_LENGTH,
            "MARKER_BYTE": MARKER[0],
            "LARGEST_DIGIT": ord("9"),
        },
    )


def member_of(post_id: int) -> str:
    """Returns the member that represents a post in a timeline."""
    return f"{_LARGEST_ID - post_id:019}"


def cursor_of(before: int) -> str:
    """Returns the member after which a slice of posts with ids below `before` starts; "" for 0."""
    return member_of(before) if before else ""


def post_ids_of(members: Sequence[bytes]) -> list[int]:
    """Returns the posts that members represent."""
    return [_LARGEST_ID - int(member) for member in members]


def extent_of(last: bytes) -> Extent:
    """Returns the extent of a timeline, given its last member (empty: there is no timeline)."""
    if not last:
        return Extent.ABSENT
    if last == START:
        return Extent.WHOLE
    if last.startswith(MARKER):
        return Extent.REBUILDING
    return Extent.PARTIAL
