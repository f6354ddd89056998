"""A TCP proxy between a client and a server, whose connections a test can cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Line:
    """Forwards bytes in both directions until it is cut."""

    def __init__(self, far_port: int) -> None:
        self.port = 0
        """The port that clients connect to, on 127.0.0.1."""
        self._far_port = far_port
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Aborts all connections, as a crash of the client does."""
        for writer in self._writers:
            writer.transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far_port)
        self._writers += writer, far_writer
        await asyncio.gather(_forward(reader, far_writer), _forward(far_reader, writer))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(65_536):
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Yields a line to a port of this machine."""
    line = Line(port)
    async with await asyncio.start_server(line.connect, "127.0.0.1") as server:
        line.port = server.sockets[0].getsockname()[1]
        try:
            yield line
        finally:
            line.cut()
