"""The fastest way to send commands to Valkey: all at once, over a plain socket.

The client waits for nothing in between and only counts the replies. This is a ceiling for any
client that sends the same commands.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, cast

import hiredis

from services.chassis.cache.cluster import slot_of
from services.chassis.cache.valkey import Address, Word, parse_url

_SLOTS = 16_384
_READ_BYTES = 256 * 1024


class Pipelines:
    """A connection to each server that holds keys of owners: in a cluster, to each master."""

    def __init__(self, valkey_url: str) -> None:
        self._sockets: dict[Address, socket.socket] = {}
        seeds, _ = parse_url(valkey_url)
        self._owners = [seeds[0]] * _SLOTS
        if len(seeds) > 1:
            for first, last, (host, port, *_), *_replicas in self.ask(seeds[0], "CLUSTER", "SLOTS"):
                self._owners[first : last + 1] = [Address(host.decode(), port)] * (last + 1 - first)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._sockets.values():
            connection.close()

    @property
    def servers(self) -> Sequence[Address]:
        """The servers that hold keys of owners."""
        return list(dict.fromkeys(self._owners))

    def owner_of(self, owner_id: int) -> Address:
        """Returns the server that holds an owner's keys."""
        return self._owners[slot_of(str(owner_id))]

    def ask(self, server: Address, *words: Word) -> Any:
        """Runs one command on one server; returns its reply."""
        connection = self._connection(server)
        connection.sendall(_packed(words))
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(_READ_BYTES))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def configure(self, setting: str, value: Word) -> None:
        """Changes a setting on all servers."""
        for server in self.servers:
            self.ask(server, "CONFIG", "SET", setting, value)

    def run(self, commands: Sequence[tuple[int, Sequence[Word]]]) -> float:
        """Runs commands on their owners' servers; replies must be single lines.

        Returns the seconds from the first byte to the last reply.
        """
        packed: dict[Address, list[bytes]] = {}
        for owner_id, words in commands:
            packed.setdefault(self.owner_of(owner_id), []).append(_packed(words))
        work = [(self._connection(at), b"".join(each), len(each)) for at, each in packed.items()]
        with ThreadPoolExecutor(len(work)) as pool:
            began = time.monotonic()
            for done in [pool.submit(_run, *each) for each in work]:
                done.result()
            return time.monotonic() - began

    def _connection(self, server: Address) -> socket.socket:
        if server not in self._sockets:
            self._sockets[server] = socket.create_connection((server.host, server.port))
        return self._sockets[server]


def _run(connection: socket.socket, commands: bytes, count: int) -> None:
    def send() -> None:
        # The thread that reads the replies reports a lost connection.
        with contextlib.suppress(OSError):
            connection.sendall(commands)

    sender = threading.Thread(target=send)
    sender.start()
    replies = 0
    while replies < count:
        data = connection.recv(_READ_BYTES)
        if not data or data.startswith(b"-") or b"\n-" in data:
            raise RuntimeError(f"Valkey returned an error: {data[:100]!r}")
        replies += data.count(b"\n")
    sender.join()


def _packed(words: Sequence[Word]) -> bytes:
    # hiredis's own type annotations allow only one word.
    return cast(bytes, hiredis.pack_command(cast(Any, tuple(words))))
