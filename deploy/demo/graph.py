"""The follow graph of the demo: an edge list, or a small generated one."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("ada", "bela", "chidi", "dolores", "emre", "fatima", "goran", "hana", "ines", "jun")


class BadEdgeList(Exception):
    """The file is not an edge list; the text is for users."""


@dataclass(frozen=True)
class FollowGraph:
    """Who follows whom."""

    people: tuple[str, ...]
    follows: frozenset[tuple[str, str]]
    """Pairs of follower and followee."""

    def most_followed(self) -> list[str]:
        """Returns the people who have followers, most followers first."""
        counts = Counter(followee for _, followee in self.follows)
        return sorted(counts, key=lambda person: (-counts[person], person))

    def followers_of(self, author: str) -> list[str]:
        """Returns the followers of a person."""
        return [follower for follower, followee in self.follows if followee == author]

    def reaches(self, author: str, reader: str) -> bool:
        """Reports whether an author's posts belong in a reader's feed."""
        return author == reader or (reader, author) in self.follows


def generated() -> FollowGraph:
    """Returns ten people: each follows the three before them, and all follow ada."""
    follows = {
        (_NAMES[i], _NAMES[(i - step) % len(_NAMES)])
        for i in range(len(_NAMES))
        for step in (1, 2, 3)
    }
    follows |= {(name, _NAMES[0]) for name in _NAMES[1:]}
    return FollowGraph(_NAMES, frozenset(follows))


def from_file(path: Path) -> FollowGraph:
    """Reads an edge list: a line `a b` means that a follows b; # and % start comments.

    Raises:
        BadEdgeList: a line is not a pair, or the file has none.
    """
    follows: set[tuple[str, str]] = set()
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadEdgeList(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words or words[0][0] in "#%":
            continue
        if len(words) < 2:
            raise BadEdgeList(f"{path}, line {number}: expected two names, found {line!r}")
        if words[0] != words[1]:
            follows.add((words[0], words[1]))
    if not follows:
        raise BadEdgeList(f"{path} contains no pair of names")
    people = sorted({person for pair in follows for person in pair})
    return FollowGraph(tuple(people), frozenset(follows))
