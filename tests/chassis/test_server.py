"""A server refuses what its contracts do not allow."""

import grpc
import pytest

from services.chassis.rpc import tls
from services.chassis.rpc.client import channel
from services.chassis.rpc.server import Interceptor
from tests.callers import Refusal


@pytest.mark.parametrize(
    "path",
    [
        # No contract describes the service.
        "/photomesh.unknown.v1.UnknownService/Get",
        # The contract does not describe the method.
        "/photomesh.feed.v1.FeedService/Unknown",
    ],
)
@pytest.mark.parametrize("identity", ["gateway", "operator", "feed"])
async def test_a_method_without_a_contract_is_served_to_nobody(stack, path, identity):
    async def answer(request: bytes, _: object) -> bytes:
        return b"secret"

    service, _, method = path[1:].rpartition("/")
    server = grpc.aio.server(interceptors=[Interceptor()])
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {method: grpc.unary_unary_rpc_method_handler(answer)}
            ),
        )
    )
    pki = stack.layout.pki
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(pki / "feed"))
    await server.start()
    try:
        async with channel("feed", f"127.0.0.1:{port}", pki / identity) as peer:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await peer.unary_unary(path)(b"", timeout=60)
    finally:
        await server.stop(0)

    assert Refusal.of(refused.value) == Refusal(
        grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"
    )
