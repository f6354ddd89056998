"""Which server has which key: all of them one server, or each of a cluster's masters a share.

In a cluster a key's slot is CRC16 of what stands in its first braces, modulo 16,384; masters own
slots. When a master dies a replica takes its place, and slots can be moved at any time, so what
is known here is only a good guess, which servers correct.
"""

import asyncio
import contextlib
import random
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis

from services.common import logs
from services.common.errors import Unavailable
from services.common.valkey import PART, Address, Login, Server

_log = logs.logger(__name__)

_SLOTS = 16_384
_RELEARN_SECONDS = 0.1
"""How often the cluster is asked at most, when something seems to have changed."""


def slot_of(key: str) -> int:
    """Returns the slot of a key, or of an owner's id alone, which is what its keys' braces hold."""
    _, brace, behind = key.partition("{")
    if brace:
        tag, closing, _ = behind.partition("}")
        if closing and tag:
            key = tag
    return crc_hqx(key.encode(), 0) % _SLOTS


class OneServer:
    """A single server has every slot."""

    def __init__(self, address: Address, login: Login, timeout: float) -> None:
        """Takes how many seconds the server may take to answer."""
        self._server = Server(address, login, timeout)
        self.owners: list[Server | None] = [self._server] * _SLOTS

    async def owner_of(self, _: int) -> Server:
        """Returns the server."""
        return self._server

    def suspect(self) -> None:
        """Nothing else is to be found."""

    async def relearn(self) -> None:
        """Nothing else is to be found."""

    async def close(self) -> None:
        """Ends the connection."""
        await self._server.close()


class Cluster:
    """The masters of a cluster, found through the servers that are configured."""

    def __init__(self, seeds: Sequence[Address], login: Login, timeout: float) -> None:
        """Takes some of the servers, and how many seconds a server may take to answer."""
        self._seeds = seeds
        self._login = login
        self._timeout = timeout
        self._servers: dict[Address, Server] = {}
        self.owners: list[Server | None] = [None] * _SLOTS
        """The server that has each slot, where it is known."""
        self._learning: asyncio.Task[None] | None = None
        self._learned_at = -_RELEARN_SECONDS

    async def owner_of(self, slot: int) -> Server:
        """Returns the server that has a slot.

        Raises:
            Unavailable: none is known to.
        """
        owner = self.owners[slot]
        if owner is None:
            await self.relearn()
            owner = self.owners[slot]
        if owner is None:
            raise Unavailable(PART)
        return owner

    def moved(self, slot: int, address: Address) -> Server:
        """Believes a server that says where a slot is now; others may have moved, too."""
        server = self.owners[slot] = self.at(address)
        self.suspect()
        return server

    def at(self, address: Address) -> Server:
        """Returns the server at an address."""
        if address not in self._servers:
            self._servers[address] = Server(address, self._login, self._timeout)
        return self._servers[address]

    def suspect(self) -> None:
        """Asks the cluster anew, by and by, for something seems to have changed."""
        elapsed = asyncio.get_running_loop().time() - self._learned_at
        if self._learning is None and elapsed > _RELEARN_SECONDS:
            self._start_learning()

    async def relearn(self) -> None:
        """Asks the cluster anew; returns when it is known, or no server answers soon."""
        await asyncio.wait({self._learning or self._start_learning()}, timeout=self._timeout)

    async def close(self) -> None:
        """Ends all connections."""
        if self._learning:
            self._learning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._learning
        for server in self._servers.values():
            await server.close()

    def _start_learning(self) -> "asyncio.Task[None]":
        def done(_: "asyncio.Task[None]") -> None:
            self._learning = None
            self._learned_at = asyncio.get_running_loop().time()

        self._learning = asyncio.create_task(self._learn())
        self._learning.add_done_callback(done)
        return self._learning

    async def _learn(self) -> None:
        known = {*self._seeds, *(server.address for server in self._masters())}
        for address in random.sample(list(known), len(known)):
            try:
                [ranges] = await self.at(address).ask([("CLUSTER", "SLOTS")])
            except Unavailable:
                continue
            if isinstance(ranges, hiredis.ReplyError):
                _log.warning("a server tells nothing of its cluster", why=str(ranges))
            else:
                await self._apply(ranges, asked=address)
                return

    async def _apply(self, ranges: Iterable[Any], asked: Address) -> None:
        before = set(self._masters())
        owners: list[Server | None] = [None] * _SLOTS
        for first, last, (host, port, *_), *_replicas in ranges:
            # Without a host it is the one that answered.
            master = self.at(Address(host.decode() if host else asked.host, port))
            owners[first : last + 1] = [master] * (last + 1 - first)
        self.owners = owners
        masters = set(self._masters())
        if before != masters:
            _log.info(
                "the cache's masters are known",
                masters=sorted(f"{m.address.host}:{m.address.port}" for m in masters),
            )
        for address in [a for a, server in self._servers.items() if server not in masters]:
            # Whoever still waits for an answer of its gets it.
            if not self._servers[address].is_connected:
                await self._servers.pop(address).close()

    def _masters(self) -> Iterable[Server]:
        return {server for server in self.owners if server is not None}
