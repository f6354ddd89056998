"""Valkey or Redis: scripts that run beside the data of one owner, and plain values.

All keys of an owner (an account, say) carry its id in braces, as `feed:{17}` does, so that in a
cluster they lie on one node, in the slot of the text `17`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from hiredis import ReplyError

from services.common.cluster import Cluster, OneServer, slot_of
from services.common.config import CacheSettings
from services.common.errors import Unavailable
from services.common.valkey import PART, Address, Command, Server, Word, parse_url

_MOST_TRIES = 4
"""How often a command is sent that servers refuse because its slot is not theirs."""

# A script makes its keys itself, so that one call may touch many owners of one node; the server
# still refuses keys that are not there.
_SHEBANG = "#!lua flags=allow-cross-slot-keys\n"


@dataclass(frozen=True)
class Script:
    """A Lua script. It gets no KEYS: it makes them from the ids in ARGV, as `feed:{<id>}`."""

    text: str
    source: str = field(init=False, repr=False)
    """The whole program as the server gets it."""
    sha: str = field(init=False, repr=False)
    """Its SHA-1 in hexadecimal, by which the server knows it."""

    def __post_init__(self) -> None:
        source = _SHEBANG + self.text
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "sha", hashlib.sha1(source.encode()).hexdigest())  # noqa: S324


# MGET takes keys of one slot only, and as many GETs cost this process half as much again.
_GET_MANY = Script("""
    local values = {}
    for index, key in ipairs(ARGV) do
        values[index] = redis.call('GET', key)
    end
    return values
""")


class Cache:
    """One Valkey or a cluster.

    Every method raises Unavailable when it is away, slow, loading or full. ReplyError means that
    a script or a command is wrong.
    """

    def __init__(self, servers: OneServer | Cluster) -> None:
        self._servers = servers

    async def run(self, script: Script, owner_id: int, args: Sequence[Word]) -> Any:
        """Runs a script on the server that has the owner's keys, and returns what it returns.

        The id decides only where: a script that needs it gets it in `args`.
        """
        slot = slot_of(str(owner_id))
        server = self._servers.owners[slot] or await self._servers.owner_of(slot)
        reply = await self._evaluate(server, script, args)
        if _is_misplaced(reply):
            # With a key that is declared the servers tell where it is.
            declared = ("EVAL", script.source, 1, f"{{{owner_id}}}", *args)
            [reply] = await self._ask_owners([(slot, declared)])
        return _checked(reply)

    async def run_on_owners(
        self, script: Script, owner_ids: Sequence[int], args: Sequence[Word]
    ) -> list[Any]:
        """Runs a script once on each server that has some of the owners.

        Its ARGV are `args` and then the ids of that server's owners. Returns a result per call
        that was made: one per server, and more while slots move, or when a server has just been
        replaced. Then a script may run again on owners that it had reached, and when a server
        fails, others have run it: it must be idempotent.
        """
        groups = await self._by_server(owner_ids)
        replies = await _all(
            self._evaluate(server, script, [*args, *group]) for server, group in groups.items()
        )
        alone: list[tuple[int, Command]] = []
        results = []
        for group, reply in zip(groups.values(), replies, strict=True):
            if _is_misplaced(reply):
                alone += [
                    (
                        slot_of(str(owner_id)),
                        ("EVAL", script.source, 1, f"{{{owner_id}}}", *args, owner_id),
                    )
                    for owner_id in group
                ]
            else:
                results.append(_checked(reply))
        if alone:
            results += map(_checked, await self._ask_owners(alone))
        return results

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Returns the values of the keys in their order; None where there is none."""
        if not keys:
            return []
        if isinstance(self._servers, OneServer):
            server = await self._servers.owner_of(0)
            [found] = await self._ask(server, [("MGET", *keys)])
            return cast(list[bytes | None], _checked(found))
        groups: dict[Server, list[int]] = {}
        for index, key in enumerate(keys):
            slot = slot_of(key)
            server = self._servers.owners[slot] or await self._servers.owner_of(slot)
            groups.setdefault(server, []).append(index)
        answers = await _all(
            self._evaluate(server, _GET_MANY, [keys[index] for index in group])
            for server, group in groups.items()
        )
        values: list[bytes | None] = [None] * len(keys)
        for group, answer in zip(groups.values(), answers, strict=True):
            if _is_misplaced(answer):
                answer = await self._ask_owners(
                    [(slot_of(keys[index]), ("GET", keys[index])) for index in group]
                )
            for index, value in zip(group, _checked(answer), strict=True):
                values[index] = _checked(value)
        return values

    async def put_many(self, values: Mapping[str, bytes], *, seconds: int, only_new: bool) -> None:
        """Sets values that live for `seconds`; with `only_new`, leaves those that exist."""
        condition = ("NX",) if only_new else ()
        replies = await self._ask_owners(
            [
                (slot_of(key), ("SET", key, value, "EX", seconds, *condition))
                for key, value in values.items()
            ]
        )
        for reply in replies:
            _checked(reply)

    async def delete(self, key: str) -> None:
        """Removes a key, if it exists."""
        [reply] = await self._ask_owners([(slot_of(key), ("UNLINK", key))])
        _checked(reply)

    async def _by_server(self, owner_ids: Sequence[int]) -> Mapping[Server, Sequence[int]]:
        if isinstance(self._servers, OneServer):
            # To find slots takes longer than all else that a call does here.
            return {await self._servers.owner_of(0): owner_ids} if owner_ids else {}
        groups: dict[Server, list[int]] = {}
        for owner_id in owner_ids:
            slot = slot_of(str(owner_id))
            server = self._servers.owners[slot] or await self._servers.owner_of(slot)
            groups.setdefault(server, []).append(owner_id)
        return groups

    async def _evaluate(self, server: Server, script: Script, args: Sequence[Word]) -> Any:
        [reply] = await self._ask(server, [("EVALSHA", script.sha, 0, *args)])
        if isinstance(reply, ReplyError) and _code(reply) == "NOSCRIPT":
            [reply] = await self._ask(server, [("EVAL", script.source, 0, *args)])
        return reply

    async def _ask_owners(self, commands: Sequence[tuple[int, Command]]) -> list[Any]:
        """Sends commands to the servers of their slots, and follows where they point."""
        replies: list[Any] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        told: dict[int, Server] = {}
        for attempt in range(_MOST_TRIES):
            if len(told) < len(left) and attempt:
                # A slot is under way, or a replica takes over.
                await self._servers.relearn()
                await asyncio.sleep(0.01 * attempt)
            groups: dict[Server, list[int]] = {}
            for index in left:
                slot = commands[index][0]
                server = (
                    told.get(index)
                    or self._servers.owners[slot]
                    or await self._servers.owner_of(slot)
                )
                groups.setdefault(server, []).append(index)
            answers = await _all(
                self._ask(server, [commands[index][1] for index in group])
                for server, group in groups.items()
            )
            told = {}
            for group, answer in zip(groups.values(), answers, strict=True):
                for index, reply in zip(group, answer, strict=True):
                    replies[index] = reply
                    if isinstance(reply, ReplyError) and isinstance(self._servers, Cluster):
                        slot, command = commands[index]
                        if _code(reply) == "MOVED":
                            told[index] = self._servers.moved(slot, _address(reply))
                        elif _code(reply) == "ASK":
                            # Of this one time only, while the slot is moved key by key.
                            server = self._servers.at(_address(reply))
                            _, replies[index] = await self._ask(server, [("ASKING",), command])
            left = [index for index in left if _is_misplaced(replies[index])]
            if not left:
                return replies
        raise Unavailable(PART)

    async def _ask(self, server: Server, commands: Sequence[Command]) -> list[Any]:
        try:
            return await server.ask(commands)
        except Unavailable:
            self._servers.suspect()
            raise


@asynccontextmanager
async def connect(settings: CacheSettings) -> AsyncIterator[Cache]:
    """Yields a bounded client; it connects when it is first used.

    Raises:
        ValueError: `valkey_url` cannot be understood.
    """
    addresses, login = parse_url(settings.valkey_url)
    timeout = settings.valkey_timeout_seconds
    servers = (
        OneServer(addresses[0], login, timeout)
        if len(addresses) == 1
        else Cluster(addresses, login, timeout)
    )
    try:
        yield Cache(servers)
    finally:
        await servers.close()


async def _all(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Awaits all calls, also when one fails, and returns what they return."""
    every = list(calls)
    if len(every) == 1:
        return [await every[0]]
    results = await asyncio.gather(*every, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ReplyError):
            raise result
    return results


def _code(error: ReplyError) -> str:
    return str(error).partition(" ")[0]


def _address(redirection: ReplyError) -> Address:
    """Parses `MOVED 3999 127.0.0.1:6381`."""
    host, _, port = str(redirection).split(" ")[2].rpartition(":")
    return Address(host, int(port))


def _is_misplaced(reply: Any) -> bool:
    """Tells whether a server refused because the keys are not its own, or not for the moment."""
    return isinstance(reply, ReplyError) and (
        _code(reply) in ("MOVED", "ASK", "TRYAGAIN", "READONLY")
        or "a non local key in a cluster" in str(reply)
    )


def _checked(reply: Any) -> Any:
    """Returns a reply, unless it is an error.

    Raises:
        Unavailable: the server cannot do it now: OOM, LOADING, CLUSTERDOWN and the like.
        ReplyError: it never can.
    """
    if isinstance(reply, ReplyError):
        if _code(reply) in ("ERR", "WRONGTYPE") and "cluster is down" not in str(reply):
            raise reply
        raise Unavailable(PART) from reply
    return reply
