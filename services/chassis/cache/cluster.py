"""Maps keys to servers: one server holds all keys, or each master of a cluster holds some.

In a cluster, a key's slot is the CRC16 of the text in its first braces, modulo 16,384. Each slot
belongs to a master. Replicas can be promoted and slots moved at any time, so the map can be
outdated; servers then reply with redirections, which correct it.
"""

import asyncio
import random
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis

from services.chassis.cache.valkey import PART, Address, Login, Server
from services.chassis.errors import Unavailable
from services.chassis.shared_tasks import SharedTasks
from services.chassis.telemetry import logs

_log = logs.logger(__name__)

_SLOTS = 16_384
_RELEARN_SECONDS = 0.1
"""The minimum time between two background refreshes of the map."""


def slot_of(key: str) -> int:
    """Returns the slot of a key, or of an owner's id, which is the text in its keys' braces."""
    _, brace, behind = key.partition("{")
    if brace:
        tag, closing, _ = behind.partition("}")
        if closing and tag:
            key = tag
    return crc_hqx(key.encode(), 0) % _SLOTS


class OneServer:
    """A single server, which owns every slot."""

    def __init__(self, address: Address, login: Login, timeout: float) -> None:
        """Takes the timeout of a command, in seconds."""
        self._server = Server(address, login, timeout)
        self.owners: list[Server | None] = [self._server] * _SLOTS

    async def owner_of(self, _: int) -> Server:
        """Returns the server."""
        return self._server

    def suspect(self) -> None:
        """Does nothing: the map is fixed."""

    async def relearn(self) -> None:
        """Does nothing: the map is fixed."""

    async def close(self) -> None:
        """Closes the connection."""
        await self._server.close()


class Cluster:
    """The masters of a cluster, discovered through the configured servers."""

    def __init__(self, seeds: Sequence[Address], login: Login, timeout: float) -> None:
        """Takes some of the servers, and the timeout of a command in seconds."""
        self._seeds = seeds
        self._login = login
        self._timeout = timeout
        self._servers: dict[Address, Server] = {}
        self.owners: list[Server | None] = [None] * _SLOTS
        """The owner of each slot; None if unknown."""
        self._learning = SharedTasks[str, None]()
        self._learned_at = -_RELEARN_SECONDS

    async def owner_of(self, slot: int) -> Server:
        """Returns the server that owns a slot.

        Raises:
            Unavailable: the owner cannot be discovered.
        """
        owner = self.owners[slot]
        if owner is None:
            await self.relearn()
            owner = self.owners[slot]
        if owner is None:
            raise Unavailable(PART)
        return owner

    def moved(self, slot: int, address: Address) -> Server:
        """Records a slot's new owner, and refreshes the map: other slots may have moved, too."""
        server = self.owners[slot] = self.at(address)
        self.suspect()
        return server

    def at(self, address: Address) -> Server:
        """Returns the server at an address."""
        if address not in self._servers:
            self._servers[address] = Server(address, self._login, self._timeout)
        return self._servers[address]

    def suspect(self) -> None:
        """Refreshes the map in the background, because it may be outdated."""
        elapsed = asyncio.get_running_loop().time() - self._learned_at
        if not self._learning and elapsed > _RELEARN_SECONDS:
            self._learning.start("slots", self._learn)

    async def relearn(self) -> None:
        """Refreshes the map; returns when that is done, or after the timeout."""
        learning = self._learning.start("slots", self._learn)
        await asyncio.wait({learning}, timeout=self._timeout)

    async def close(self) -> None:
        """Closes all connections."""
        await self._learning.close()
        for server in self._servers.values():
            await server.close()

    async def _learn(self) -> None:
        known = {*self._seeds, *(server.address for server in self._masters())}
        try:
            for address in random.sample(list(known), len(known)):
                try:
                    [ranges] = await self.at(address).execute([("CLUSTER", "SLOTS")])
                except Unavailable:
                    continue
                if isinstance(ranges, hiredis.ReplyError):
                    _log.warning("cluster.slots_refused", error=str(ranges))
                else:
                    await self._apply(ranges, source=address)
                    return
        finally:
            self._learned_at = asyncio.get_running_loop().time()

    async def _apply(self, ranges: Iterable[Any], source: Address) -> None:
        before = set(self._masters())
        owners: list[Server | None] = [None] * _SLOTS
        for first, last, (host, port, *_), *_replicas in ranges:
            # An empty host means the server that replied.
            master = self.at(Address(host.decode() if host else source.host, port))
            owners[first : last + 1] = [master] * (last + 1 - first)
        self.owners = owners
        masters = set(self._masters())
        if before != masters:
            _log.info(
                "cluster.masters_changed",
                masters=sorted(f"{m.address.host}:{m.address.port}" for m in masters),
            )
        for address in [a for a, server in self._servers.items() if server not in masters]:
            # Keeps connected servers, because callers may be waiting for their replies.
            if not self._servers[address].is_connected:
                await self._servers.pop(address).close()

    def _masters(self) -> Iterable[Server]:
        return {server for server in self.owners if server is not None}
