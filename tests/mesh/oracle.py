"""What home feeds must hold, and what they may: brute force over all that was done.

Operations overlap, and their answers do not tell which of two took effect first. So of each
matter (what is between two accounts; one post) all worlds are kept that the answers allow, as a
checker of linearizability does. When nothing is under way, few are left, as a rule one.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

Fact = tuple[str, int, int]
"""Such as ("follows", reader, author), or ("archived", post, author)."""

World = frozenset[Fact]

Thing = tuple[int, int]
"""What can be visible: (reader, author), all of an author's posts; or (0, post), to anybody."""


@dataclass(frozen=True)
class Operation:
    """Something that somebody does to an account or to a post."""

    serial: int
    kind: str
    actor: int
    other: int

    def __str__(self) -> str:
        return f"#{self.serial} {self.actor} {self.kind} {self.other}"


def effects(world: World, do: Operation) -> Iterator[tuple[World, str]]:
    """Yields what may become of a world by an operation, and the answer to it."""
    actor, other = do.actor, do.other
    mine = {("follows", actor, other), ("requested", actor, other)}
    theirs = {("follows", other, actor), ("requested", other, actor)}
    is_blocked = bool(world & {("blocks", actor, other), ("blocks", other, actor)})
    is_deleted = ("deleted", other, actor) in world
    match do.kind:
        case "follow" | "mute" if is_blocked:
            yield world, "ACCOUNT_UNKNOWN"
        case "follow" if ("follows", actor, other) in world:
            yield world, "following"
        case "follow":
            # Whether the account is private is not known here; the answer tells.
            yield world - mine | {("follows", actor, other)}, "following"
            yield world | {("requested", actor, other)}, "requested"
        case "unfollow":
            yield world - mine, "done"
        case "accept" if ("requested", other, actor) in world:
            yield world - theirs | {("follows", other, actor)}, "done"
        case "accept":
            is_follower = ("follows", other, actor) in world
            yield world, "done" if is_follower else "FOLLOW_REQUEST_UNKNOWN"
        case "decline":
            yield world - {("requested", other, actor)}, "done"
        case "remove":
            yield world - {("follows", other, actor)}, "done"
        case "block":
            yield world - mine - theirs | {("blocks", actor, other)}, "done"
        case "unblock":
            yield world - {("blocks", actor, other)}, "done"
        case "mute":
            yield world | {("mutes", actor, other)}, "done"
        case "unmute":
            yield world - {("mutes", actor, other)}, "done"
        case "delete":
            yield frozenset({("deleted", other, actor)}), "done"
        case "archive" | "unarchive" if is_deleted:
            yield world, "POST_UNKNOWN"
        case "archive":
            yield world | {("archived", other, actor)}, "done"
        case "unarchive":
            yield world - {("archived", other, actor)}, "done"
        case kind:
            raise AssertionError(f"nobody knows how to {kind}")


def visible(world: World, key: Hashable) -> set[Thing]:
    """Returns what can be seen in a world."""
    if isinstance(key, int):
        return set() if world else {(0, key)}
    return {
        (reader, author)
        for fact, reader, author in world
        if fact == "follows" and ("mutes", reader, author) not in world
    }


@dataclass
class _Matter:
    """All worlds that are possible, each with what was answered in it to what is under way."""

    worlds: set[tuple[World, frozenset[tuple[int, str]]]] = field(
        default_factory=lambda: {(frozenset(), frozenset())}
    )
    pending: dict[int, Operation] = field(default_factory=dict)

    def begin(self, operation: Operation) -> None:
        self.pending[operation.serial] = operation
        self._expand()

    def end(self, operation: Operation, answer: str) -> None:
        effect = (operation.serial, answer)
        self.worlds = {(world, done - {effect}) for world, done in self.worlds if effect in done}
        del self.pending[operation.serial]
        assert self.worlds, f"{operation} cannot have been answered {answer}"

    def _expand(self) -> None:
        """Lets what is under way take effect now, in any order, or later."""
        new = self.worlds
        while new:
            new = {
                (after, done | {(serial, answer)})
                for world, done in new
                for serial, operation in self.pending.items()
                if not any(serial == each for each, _ in done)
                for after, answer in effects(world, operation)
            } - self.worlds
            self.worlds = self.worlds | new


class Oracle:
    """Knows what was done. Time is a counter of what began and ended."""

    def __init__(self) -> None:
        self.authors: dict[int, int] = {}
        """Who made each post."""
        self.now = 1
        self._matters: dict[Hashable, _Matter] = {}
        self._visible: set[Thing] = set()
        self._hidden_at: dict[Thing, int] = {}
        self._unsettled: set[frozenset[int]] = set()
        self._serial = 0
        self._history: list[tuple[int, str, set[int]]] = []

    # -- What is done ----------------------------------------------------------------------

    def begin(self, kind: str, actor: int, other: int) -> Operation:
        """Tells that something is about to be asked for."""
        self._serial += 1
        operation = Operation(self._serial, kind, actor, other)
        self._matter(operation).begin(operation)
        self._note(operation, "...")
        return operation

    def end(self, operation: Operation, answer: str) -> None:
        """Tells what was answered. What never was may take effect at any time, or never."""
        self._matter(operation).end(operation, answer)
        self._note(operation, answer)

    def posted(self, author: int, post: int) -> None:
        """Tells that a post was made."""
        self.authors[post] = author
        self._matters[post] = _Matter()
        self._note(Operation(0, "post", author, post), "done")

    def _matter(self, operation: Operation) -> _Matter:
        return self._matters.setdefault(self._key(operation), _Matter())

    def _key(self, operation: Operation) -> Hashable:
        if operation.other in self.authors:
            return operation.other
        return frozenset({operation.actor, operation.other})

    def _note(self, operation: Operation, answer: str) -> None:
        self.now += 1
        key = self._key(operation)
        if isinstance(key, frozenset):
            self._unsettled.add(key)
        things = {(operation.actor, operation.other), (operation.other, operation.actor)}
        things.add((0, operation.other))
        possible: set[Thing] = set()
        for world, _ in self._matters[key].worlds:
            possible |= visible(world, key)
        for thing in (things & self._visible) - possible:
            self._hidden_at[thing] = self.now
        self._visible -= things
        self._visible |= possible
        self._history.append(
            (self.now, f"{operation}: {answer}", {operation.actor, operation.other})
        )

    # -- What follows ----------------------------------------------------------------------

    def forbidden(self, reader: int, author: int, post: int, since: int) -> str:
        """Tells why a page that was asked for at a time must not show a post; empty: it may.

        Only what had ended by then counts; what was under way may have been seen either way.
        """
        if post in self.authors and self._was_hidden((0, post), since):
            return f"{reader} is shown {post}, which {author} had withdrawn before"
        if reader != author and self._was_hidden((reader, author), since):
            return f"{reader} is shown {post} by {author}, whom they did not want, or must not, see"
        return ""

    def _was_hidden(self, thing: Thing, since: int) -> bool:
        return thing not in self._visible and self._hidden_at.get(thing, 0) <= since

    def feed(self, reader: int) -> list[int]:
        """Returns what a reader's feed must be, once nothing is under way."""
        authors = {author for each, author in self._visible if each == reader} | {reader}
        return sorted(
            (
                post
                for post, author in self.authors.items()
                if author in authors and (0, post) in self._visible
            ),
            reverse=True,
        )

    def pairs(self) -> list[list[int]]:
        """Returns between which accounts anything was done."""
        return [sorted(key) for key in self._matters if isinstance(key, frozenset)]

    def unsettled(self) -> list[tuple[int, int]]:
        """Returns between which accounts something was done since they were last settled."""
        return sorted((min(key), max(key)) for key in self._unsettled)

    def settle(self, actor: int, other: int, told: Iterable[str]) -> None:
        """Learns from one of two accounts what holds for it, where the answers left a doubt."""
        key = frozenset({actor, other})
        matter = self._matters[key]
        settled = {
            (world, done)
            for world, done in matter.worlds
            if {fact for fact, one, _ in world if one == actor} == set(told)
        }
        assert settled, f"{actor} {told} {other} cannot be:\n{self.history(actor, other)}"
        matter.worlds = settled
        self._note(Operation(0, f"has {sorted(told)} towards", actor, other), "settled")
        self._unsettled.discard(key)

    def history(self, *concerned: int, last: int = 40) -> str:
        """Returns the last operations that touched all of the concerned, a line each."""
        wanted = set(concerned)
        lines = [f"  {at:6} {text}" for at, text, ids in self._history if wanted <= ids]
        return "\n".join(lines[-last:])
