"""Settings of a gateway that tests change."""

from pathlib import Path

from gateway.contracts import public_methods, public_services
from gateway.envoy import GatewaySettings, Peer
from services.chassis.contracts import DESCRIPTORS


def gateway_settings(pki: Path) -> GatewaySettings:
    """Returns valid settings of a gateway, apart from its ports."""
    return GatewaySettings(
        http_port=1,
        https_port=2,
        admin_port=3,
        descriptors=DESCRIPTORS,
        jwks=pki / "jwks.json",
        public_certificate=pki / "public/cert.pem",
        public_key=pki / "public/key.pem",
        identity=pki / "gateway",
        services={
            service: Peer("127.0.0.1", 4, service.split(".")[1])
            for service in public_services(public_methods(DESCRIPTORS))
        },
        pages={"/photomesh.feed.v1.FeedService/GetFeed": Peer("127.0.0.1", 6, "feed")},
        reflection=Peer("127.0.0.1", 5, "reflection"),
    )
