"""`python -m gateway.reflection`: serves gRPC reflection for the gateway's public API.

Each service behind the gateway describes itself, including its internal methods. This process
describes the public methods of all services in one place, and serves none of them.
"""

from gateway.contracts import public_methods, public_services
from services.chassis import config
from services.chassis.config import MeshSettings
from services.chassis.contracts import DESCRIPTORS
from services.chassis.rpc.server import run, serve
from services.chassis.telemetry import logs


async def main() -> None:
    settings = config.load(MeshSettings)
    logs.configure("reflection", settings.log_level)
    await serve(settings, [], describes=public_services(public_methods(DESCRIPTORS)))


run(main)
