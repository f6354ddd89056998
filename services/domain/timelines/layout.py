"""The layout of timelines in Valkey.

A timeline is a list of post ids, newest first. It holds the newest `CAP` of them, or slightly more.

* `feed1:{<account>}` is a home timeline. It exists only for accounts that have read their feed in
  the last 30 days.
* `author1:{<account>}` holds one author's own posts. It exists only while readers need it: the
  followers of a celebrity read the celebrity's posts from there.

Three properties hold:

* A timeline has no gaps: it contains every post that belongs to it and is newer than its oldest
  member. Readers continue in the database, from the oldest member on, with the same cursor.
* If the last member is `start`, no older posts exist. Trimming removes it first.
* During a rebuild the last member is a marker that identifies the rebuilder. Pushes insert before
  it, so no post is lost; readers ignore the timeline. Deleting the key deletes the marker, too,
  and then the outdated result of the rebuild is refused.

Lists instead of sorted sets: nearly every pushed post is the newest and belongs at the head. There,
a push into a list takes a third less time than into a packed sorted set, which the server scans.
The scripts insert other posts at their place. An entry of a list takes 11.4 bytes with all
overhead, of a packed sorted set 12.2, of a skip list, in which ZADD is fast, 80: at 500 million
feeds 2.7, 2.8 and 18 TiB (`make bench BENCH=memory`).

A member is `2**63 - 1 - post_id` in 19 digits, so that the newest post is the least. Scripts
compare members as text; digits are less than the letters with which `start` and markers begin.

`rules1:{<account>}` is a hash beside a home timeline, with what the list alone does not say. For
some authors it has a rule:

* `p`: pull. Read this author's own timeline, too.
* `h`: hide. The reader unfollowed or muted this author, whose posts may still be in the list or on
  their way into it.

The fields `v` and `s` hold versions of the account's relations, as graph counts them: `v` of the
last hide, `s` of the last show. A show with relations older than `v` is refused, as is a hide with
relations older than `s`. Such late commands come from callers that a cache or a network delayed.
List and hash are valid only together: if the cache evicts one, the timeline is rebuilt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from services.chassis.cache import scripts

FEED = "feed1"
RULES = "rules1"
AUTHOR = "author1"
"""The key spaces. The number is the version of the layout, so that two releases run side by side.

Raise it with every change after which a process of the previous release would misread a key, or
damage it: another type, another form of members, markers or rules. Raise `FEED` and `RULES`
together. A release sees only keys of its own version; older ones expire.

A push reaches only the version of the process that pushes, and a timeline that lacks a push is not
repaired. So replace fanout and graph, which write, before feed, which rebuilds what it misses:
feeds lack new posts and rules until feed is replaced. To avoid that, first roll out a release that
reads the old version and writes both. Before a rollback, delete the keys of the old version.
"""

CAP = 500
"""How many entries trimming keeps."""

_MAX_LENGTH = CAP + 20
"""A longer timeline is trimmed, which takes as long as a push."""

MARKER = b"rebuild:"
"""What rebuild markers begin with."""

START = b"start"
"""The last member of a timeline that holds everything."""

PULL = b"p"
HIDE = b"h"

_LARGEST_ID = (1 << 63) - 1


class Extent(Enum):
    """How far back a timeline, or a slice of it, reaches."""

    ABSENT = auto()
    """There is no timeline."""
    REBUILDING = auto()
    """A rebuild is in progress; the content is not usable."""
    PARTIAL = auto()
    """Older posts may exist: in the database or, if this is of a slice, further down."""
    WHOLE = auto()
    """The timeline holds every post."""


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
    """Returns the member of a timeline that stands for a post."""
    return f"{_LARGEST_ID - post_id:019}"


def cursor_of(before: int) -> str:
    """Returns the member that a slice of posts below an id follows; empty for 0."""
    return member_of(before) if before else ""


def post_ids_of(members: Sequence[bytes]) -> list[int]:
    """Returns the posts that members stand for."""
    return [_LARGEST_ID - int(member) for member in members]


def extent_of(last: bytes) -> Extent:
    """Returns the extent of a timeline, given its last member; empty if there is none."""
    if not last:
        return Extent.ABSENT
    if last == START:
        return Extent.WHOLE
    if last.startswith(MARKER):
        return Extent.REBUILDING
    return Extent.PARTIAL
