"""`python -m gateway.reflection`: serves gRPC reflection for the gateway's public API.

Each service behind the gateway describes itself, including its internal methods. This process
describes the public methods of all services in one place, and serves none of them.
"""

from pathlib import Path

from gateway.contracts import public_methods, public_services
from services.common import config, logs
from services.common.config import MeshSettings
from services.common.server import Service, run, serve

_DESCRIPTORS = Path(__file__).parents[1] / "gen/photomesh.binpb"


async def main() -> None:
    settings = config.load(MeshSettings)
    logs.configure("reflection", settings.log_level)
    await serve(
        settings,
        [
            Service(name, add_to=lambda _: None)
            for name in public_services(public_methods(_DESCRIPTORS))
        ],
    )


run(main)
