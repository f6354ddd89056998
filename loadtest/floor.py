"""`python -m loadtest.floor ADDRESS TLS_DIR ANSWER_FILE`: the least that a feed process could do.

A grpcio asyncio server that answers GetFeedJson with the bytes of a file, behind the same mutual
TLS, on the same event loop. What the real service takes beyond it is its own.
"""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
import uvloop

from services.common.tls import server_credentials


async def main(address: str, tls_dir: Path, answer: bytes) -> None:

    async def get_feed_json(request: bytes, context: object) -> bytes:
        return answer

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "photomesh.feed.v1.FeedService",
                {"GetFeedJson": grpc.unary_unary_rpc_method_handler(get_feed_json)},
            ),
        )
    )
    if not server.add_secure_port(address, server_credentials(tls_dir)):
        raise SystemExit(f"cannot listen on {address}")
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    _, address, tls_dir, answer_file = sys.argv
    uvloop.run(main(address, Path(tls_dir), Path(answer_file).read_bytes()))
