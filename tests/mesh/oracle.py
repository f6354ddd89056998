"""What home feeds must and may contain, derived by brute force from all operations.

Operations overlap, and their responses do not show which of two took effect first. So for each
subject (a pair of accounts; a post) the oracle keeps every state that the responses allow, as a
linearizability checker does. When no operation is in progress, few are left, usually one.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

Fact = tuple[str, int, int]
"""For example ("follows", reader, author) or ("archived", post, author)."""

World = frozenset[Fact]

Thing = tuple[int, int]
"""What can be visible: (reader, author), all posts of an author to a reader; or (0, post)."""


@dataclass(frozen=True)
class Operation:
    """What a user does to an account or to a post."""

    serial: int
    kind: str
    actor: int
    other: int

    def __str__(self) -> str:
        return f"#{self.serial} {self.actor} {self.kind} {self.other}"


def effects(world: World, do: Operation) -> Iterator[tuple[World, str]]:
    """Yields the possible worlds after an operation, each with the response to it."""
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
            # The oracle does not know whether the account is private; the response shows it.
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
            raise AssertionError(f"unknown operation {kind}")


def visible(world: World, key: Hashable) -> set[Thing]:
    """Returns what is visible in a world."""
    if isinstance(key, int):
        return set() if world else {(0, key)}
    return {
        (reader, author)
        for fact, reader, author in world
        if fact == "follows" and ("mutes", reader, author) not in world
    }


@dataclass
class _Subject:
    """The possible worlds, each with the responses to the operations in progress."""

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
        assert self.worlds, f"{answer} is an impossible response to {operation}"

    def _expand(self) -> None:
        """Adds the worlds in which operations in progress take effect now, in any order."""
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
    """Records operations. Time is a counter of their begins and ends."""

    def __init__(self) -> None:
        self.authors: dict[int, int] = {}
        """The author of each post."""
        self.now = 1
        self._subjects: dict[Hashable, _Subject] = {}
        self._visible: set[Thing] = set()
        self._hidden_at: dict[Thing, int] = {}
        self._unresolved: set[frozenset[int]] = set()
        self._serial = 0
        self._history: list[tuple[int, str, set[int]]] = []

    # -- Operations ------------------------------------------------------------------------

    def begin(self, kind: str, actor: int, other: int) -> Operation:
        """Records that an operation is about to be requested."""
        self._serial += 1
        operation = Operation(self._serial, kind, actor, other)
        self._subject(operation).begin(operation)
        self._note(operation, "...")
        return operation

    def end(self, operation: Operation, answer: str) -> None:
        """Records a response. An operation without one may take effect at any time, or never."""
        self._subject(operation).end(operation, answer)
        self._note(operation, answer)

    def posted(self, author: int, post: int) -> None:
        """Records that a post was published."""
        self.authors[post] = author
        self._subjects[post] = _Subject()
        self._note(Operation(0, "post", author, post), "done")

    def _subject(self, operation: Operation) -> _Subject:
        return self._subjects.setdefault(self._key(operation), _Subject())

    def _key(self, operation: Operation) -> Hashable:
        if operation.other in self.authors:
            return operation.other
        return frozenset({operation.actor, operation.other})

    def _note(self, operation: Operation, answer: str) -> None:
        self.now += 1
        key = self._key(operation)
        if isinstance(key, frozenset):
            self._unresolved.add(key)
        things = {(operation.actor, operation.other), (operation.other, operation.actor)}
        things.add((0, operation.other))
        possible: set[Thing] = set()
        for world, _ in self._subjects[key].worlds:
            possible |= visible(world, key)
        for thing in (things & self._visible) - possible:
            self._hidden_at[thing] = self.now
        self._visible -= things
        self._visible |= possible
        self._history.append(
            (self.now, f"{operation}: {answer}", {operation.actor, operation.other})
        )

    # -- Expectations ----------------------------------------------------------------------

    def forbidden(self, reader: int, author: int, post: int, since: int) -> str:
        """Returns why a page requested at time `since` must not show a post; empty: it may.

        Only operations that had ended by then count; the effect of others is uncertain.
        """
        if post in self.authors and self._was_hidden((0, post), since):
            return f"{reader} is shown {post}, which {author} had already withdrawn"
        if reader != author and self._was_hidden((reader, author), since):
            return f"{reader} is shown {post} by {author}, who is not visible to them"
        return ""

    def _was_hidden(self, thing: Thing, since: int) -> bool:
        return thing not in self._visible and self._hidden_at.get(thing, 0) <= since

    def feed(self, reader: int) -> list[int]:
        """Returns a reader's expected feed. No operation may be in progress."""
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
        """Returns the pairs of accounts that had operations."""
        return [sorted(key) for key in self._subjects if isinstance(key, frozenset)]

    def unresolved(self) -> list[tuple[int, int]]:
        """Returns the pairs of accounts that had operations since they were last resolved."""
        return sorted((min(key), max(key)) for key in self._unresolved)

    def resolve(self, actor: int, other: int, facts: Iterable[str]) -> None:
        """Keeps only the worlds that agree with the current facts about `actor` towards `other`."""
        key = frozenset({actor, other})
        subject = self._subjects[key]
        matching = {
            (world, done)
            for world, done in subject.worlds
            if {fact for fact, one, _ in world if one == actor} == set(facts)
        }
        assert matching, f"{actor} {facts} {other} is impossible:\n{self.history(actor, other)}"
        subject.worlds = matching
        self._note(Operation(0, f"has {sorted(facts)} towards", actor, other), "resolved")
        self._unresolved.discard(key)

    def history(self, *ids_involved: int, last: int = 40) -> str:
        """Returns the last operations that involve all of these ids, one per line."""
        wanted = set(ids_involved)
        lines = [f"  {at:6} {text}" for at, text, ids in self._history if wanted <= ids]
        return "\n".join(lines[-last:])
