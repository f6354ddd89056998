"""Every call is answered within the gateway's timeout, whatever stalls.

The timeout starts when the request is complete.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest

from gateway.contracts import PublicMethod, public_methods, public_services
from services.chassis.contracts import DESCRIPTORS
from tests.callers import Refusal
from tests.mesh.people import ApiError, Person

UNARY = [method for method in public_methods(DESCRIPTORS) if not method.streams]

PROMISED_SECONDS = 15.0

# What a busy machine may add. The sum is less than the 30 s of a deadline that was not propagated.
MARGIN_SECONDS = 10.0


@dataclass(frozen=True)
class Timed:
    answer: httpx.Response | Refusal | None
    seconds: float


async def timed(call: Awaitable[httpx.Response | Refusal | None]) -> Timed:
    began = time.monotonic()
    return Timed(await call, time.monotonic() - began)


@pytest.fixture
async def caller(person) -> Person:
    return await person().sign_up()


@pytest.fixture
async def channel(mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.ports.gateway_http}") as channel:
        yield channel


def by_rest(caller: Person, method: PublicMethod) -> Awaitable[httpx.Response]:
    """Sends the smallest request that the gateway forwards."""
    return caller.http.request(
        method.http_verb,
        re.sub(r"\{[^}]*\}", "1", method.http_path),
        json={} if method.http_verb in ("POST", "PUT", "PATCH") else None,
        headers={"authorization": f"Bearer {caller.token}"},
        timeout=60,
    )


async def refusal_of(call: Awaitable[object]) -> Refusal | None:
    """Returns the error of a call, or None."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    return None


def by_grpc(
    caller: Person, channel: grpc.aio.Channel, method: PublicMethod, timeout: float | None
) -> Awaitable[Refusal | None]:
    call: Callable[..., Awaitable[bytes]] = channel.unary_unary(method.path)
    return refusal_of(
        call(b"", timeout=timeout, metadata=(("authorization", f"Bearer {caller.token}"),))
    )


async def test_calls_to_a_stalled_service_fail_in_time(mesh, caller, channel):
    services = {name.split(".")[1] for name in public_services(UNARY)}
    # Opens the gateway's connections: opening one to a stalled process would fail sooner.
    await asyncio.gather(
        *(by_rest(caller, method) for method in UNARY),
        *(by_grpc(caller, channel, method, 60) for method in UNARY),
    )

    with ExitStack() as stalls:
        for service in services:
            stalls.enter_context(mesh.stalled(service))
        rest, plain, long_deadline = await asyncio.gather(
            asyncio.gather(*(timed(by_rest(caller, method)) for method in UNARY)),
            asyncio.gather(*(timed(by_grpc(caller, channel, each, None)) for each in UNARY)),
            asyncio.gather(*(timed(by_grpc(caller, channel, each, 3600)) for each in UNARY)),
        )

    for method, timed_call in zip(UNARY, rest, strict=True):
        assert timed_call.answer.status_code == 504, (method.path, timed_call.answer.text)
        assert ApiError(timed_call.answer).reason == "DEADLINE_EXCEEDED", method.path
    for method, timed_call in zip(UNARY * 2, (*plain, *long_deadline), strict=True):
        expected = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert timed_call.answer == expected, method.path
    late = {
        method.path: timed_call.seconds
        for method, timed_call in zip(UNARY * 3, (*rest, *plain, *long_deadline), strict=True)
        if timed_call.seconds > PROMISED_SECONDS + MARGIN_SECONDS
    }
    assert not late
