"""The client of Valkey or Redis, for Lua scripts and for plain values.

The keys of an owner, such as a user, contain its id in braces: `bookmarks:{17}`. In a cluster, only
the text in braces determines the slot, so one server holds all keys of an owner, and one script can
use them atomically.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from hiredis import ReplyError

from services.chassis.cache.cluster import Cluster, OneServer, slot_of
from services.chassis.cache.scripts import Script, load
from services.chassis.cache.valkey import PART, Address, Command, Server, Word, parse_url
from services.chassis.config import CacheSettings
from services.chassis.errors import Unavailable

_MAX_ATTEMPTS = 4
"""How many times a command is sent while servers reject it because they do not own its slot."""

# MGET accepts only keys of one slot. A GET for each key would cost this process half as much again.
_GET_MANY = load(Path(__file__).with_name("get_many.lua"))


class Cache:
    """A single server, or a cluster.

    Every method raises Unavailable if a server is unreachable, slow, loading its data or out of
    memory, and ReplyError if a script or a command is invalid.
    """

    def __init__(self, servers: OneServer | Cluster) -> None:
        self._servers = servers

    async def run(
        self, script: Script, owner_id: int, /, **arguments: Word | Sequence[Word]
    ) -> Any:
        """Runs a script on the server that holds the owner's keys; returns the script's result."""
        slot = slot_of(str(owner_id))
        server = self._servers.owners[slot] or await self._servers.owner_of(slot)
        words = [owner_id, *script.pack(arguments)]
        reply = await self._evaluate(server, script, words)
        if _is_misplaced(reply):
            # Servers only redirect calls that declare a key.
            declared = ("EVAL", script.source, 1, f"{{{owner_id}}}", *words)
            [reply] = await self._execute_on_owners([(slot, declared)])
        return _checked(reply)

    async def run_on_owners(
        self, script: Script, owner_ids: Sequence[int], /, **arguments: Word | Sequence[Word]
    ) -> list[Any]:
        """Runs a script once on each server that holds keys of some of the owners.

        Returns one result per server, or more while slots move or a server fails over. The script
        must be idempotent: in these cases it can run twice for an owner, and when a server fails,
        it may have run on others.
        """
        words = script.pack(arguments)
        groups = await self._by_server(owner_ids)
        replies = await _all(
            self._evaluate(server, script, [*group, *words]) for server, group in groups.items()
        )
        alone: list[tuple[int, Command]] = []
        results = []
        for group, reply in zip(groups.values(), replies, strict=True):
            if _is_misplaced(reply):
                alone += [
                    (
                        slot_of(str(owner_id)),
                        ("EVAL", script.source, 1, f"{{{owner_id}}}", owner_id, *words),
                    )
                    for owner_id in group
                ]
            else:
                results.append(_checked(reply))
        if alone:
            results += map(_checked, await self._execute_on_owners(alone))
        return results

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Returns the values of the keys, in their order; None for a key that does not exist."""
        if not keys:
            return []
        if isinstance(self._servers, OneServer):
            server = await self._servers.owner_of(0)
            [found] = await self._execute(server, [("MGET", *keys)])
            return cast(list[bytes | None], _checked(found))
        groups: dict[Server, list[int]] = {}
        for index, key in enumerate(keys):
            slot = slot_of(key)
            server = self._servers.owners[slot] or await self._servers.owner_of(slot)
            groups.setdefault(server, []).append(index)
        replies = await _all(
            self._evaluate(server, _GET_MANY, [keys[index] for index in group])
            for server, group in groups.items()
        )
        values: list[bytes | None] = [None] * len(keys)
        for group, reply in zip(groups.values(), replies, strict=True):
            if _is_misplaced(reply):
                reply = await self._execute_on_owners(
                    [(slot_of(keys[index]), ("GET", keys[index])) for index in group]
                )
            for index, value in zip(group, _checked(reply), strict=True):
                values[index] = _checked(value)
        return values

    async def put_many(self, values: Mapping[str, bytes], *, seconds: int, only_new: bool) -> None:
        """Sets values with a TTL of `seconds`; with `only_new`, keeps values that exist."""
        condition = ("NX",) if only_new else ()
        replies = await self._execute_on_owners(
            [
                (slot_of(key), ("SET", key, value, "EX", seconds, *condition))
                for key, value in values.items()
            ]
        )
        for reply in replies:
            _checked(reply)

    async def delete(self, key: str) -> None:
        """Removes a key, if it exists."""
        [reply] = await self._execute_on_owners([(slot_of(key), ("UNLINK", key))])
        _checked(reply)

    async def _by_server(self, owner_ids: Sequence[int]) -> Mapping[Server, Sequence[int]]:
        if isinstance(self._servers, OneServer):
            # Computing slots would take longer than the rest of the call.
            return {await self._servers.owner_of(0): owner_ids} if owner_ids else {}
        groups: dict[Server, list[int]] = {}
        for owner_id in owner_ids:
            slot = slot_of(str(owner_id))
            server = self._servers.owners[slot] or await self._servers.owner_of(slot)
            groups.setdefault(server, []).append(owner_id)
        return groups

    async def _evaluate(self, server: Server, script: Script, words: Sequence[Word]) -> Any:
        [reply] = await self._execute(server, [("EVALSHA", script.sha, 0, *words)])
        if isinstance(reply, ReplyError) and _code(reply) == "NOSCRIPT":
            [reply] = await self._execute(server, [("EVAL", script.source, 0, *words)])
        return reply

    async def _execute_on_owners(self, commands: Sequence[tuple[int, Command]]) -> list[Any]:
        """Sends each command to the owner of its slot, and resends it after a redirection."""
        replies: list[Any] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        redirected: dict[int, Server] = {}
        for attempt in range(_MAX_ATTEMPTS):
            if len(redirected) < len(left) and attempt:
                # A slot is being moved, or a replica is being promoted.
                await self._servers.relearn()
                await asyncio.sleep(0.01 * attempt)
            groups: dict[Server, list[int]] = {}
            for index in left:
                slot = commands[index][0]
                server = (
                    redirected.get(index)
                    or self._servers.owners[slot]
                    or await self._servers.owner_of(slot)
                )
                groups.setdefault(server, []).append(index)
            batches = await _all(
                self._execute(server, [commands[index][1] for index in group])
                for server, group in groups.items()
            )
            redirected = {}
            for group, batch in zip(groups.values(), batches, strict=True):
                for index, reply in zip(group, batch, strict=True):
                    replies[index] = reply
                    if isinstance(reply, ReplyError) and isinstance(self._servers, Cluster):
                        slot, command = commands[index]
                        if _code(reply) == "MOVED":
                            redirected[index] = self._servers.moved(slot, _address(reply))
                        elif _code(reply) == "ASK":
                            # Applies to this command only: the slot is being moved key by key.
                            server = self._servers.at(_address(reply))
                            _, replies[index] = await self._execute(server, [("ASKING",), command])
            left = [index for index in left if _is_misplaced(replies[index])]
            if not left:
                return replies
        raise Unavailable(PART)

    async def _execute(self, server: Server, commands: Sequence[Command]) -> list[Any]:
        try:
            return await server.execute(commands)
        except Unavailable:
            self._servers.suspect()
            raise


@asynccontextmanager
async def connect(settings: CacheSettings) -> AsyncIterator[Cache]:
    """Yields a client, which connects on first use.

    Raises:
        ValueError: `valkey_url` is malformed.
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
    """Awaits all calls, even if one fails, and returns their results."""
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
    """Reports whether a server rejected a command because it does not own the keys now."""
    return isinstance(reply, ReplyError) and (
        _code(reply) in ("MOVED", "ASK", "TRYAGAIN", "READONLY")
        or "a non local key in a cluster" in str(reply)
    )


def _checked(reply: Any) -> Any:
    """Returns a reply, unless it is an error.

    Raises:
        Unavailable: the error is temporary, such as OOM, LOADING or CLUSTERDOWN.
        ReplyError: the error is permanent.
    """
    if isinstance(reply, ReplyError):
        if _code(reply) in ("ERR", "WRONGTYPE") and "cluster is down" not in str(reply):
            raise reply
        raise Unavailable(PART) from reply
    return reply
