"""`python -m gateway {gateway,edge}`: prints an Envoy configuration, built from the environment.

`--help` lists the environment variables.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.processes import MESH, variable
from gateway import edge, envoy
from gateway.contracts import public_methods, public_services

_GATEWAY = """\
PHOTOMESH_GATEWAY_HTTP_PORT, _HTTPS_PORT, _ADMIN_PORT
                              ports on loopback
PHOTOMESH_DESCRIPTORS         the FileDescriptorSet of the contracts (gen/photomesh.binpb)
PHOTOMESH_JWKS_FILE           the keys of access tokens
PHOTOMESH_PUBLIC_CERTIFICATE, PHOTOMESH_PUBLIC_KEY
                              the certificate and key of the TLS listener, PEM files
PHOTOMESH_TLS_DIR             folder of the identity `gateway`: ca.pem, cert.pem, key.pem
PHOTOMESH_PEER_<NAME>         host:port of each process (deploy/processes.py) with public methods,
                              and of `reflection`; its certificate must be for that name
PHOTOMESH_PEER_<NAME>_REST    host:port where a process answers REST itself
PHOTOMESH_CORS_ORIGINS        origins of web pages that can call the API, separated by spaces
                              (optional)
"""

_EDGE = """\
PHOTOMESH_EDGE_PORT, PHOTOMESH_EDGE_ADMIN_PORT
                              ports on loopback
PHOTOMESH_S3_HOST, PHOTOMESH_S3_PORT, PHOTOMESH_S3_REGION, PHOTOMESH_MEDIA_BUCKET
                              the location of the variants
PHOTOMESH_S3_ACCESS_KEY, PHOTOMESH_S3_SECRET_KEY
                              the keys of an identity that can read them
PHOTOMESH_CDN_KEY_FILE        the secret of media tokens, hexadecimal text
PHOTOMESH_EDGE_CACHE_DIR      where cached responses are stored; must exist
"""


def _gateway(environment: Mapping[str, str]) -> str:
    descriptors = Path(environment["PHOTOMESH_DESCRIPTORS"])
    return envoy.build(
        envoy.GatewaySettings(
            http_port=int(environment["PHOTOMESH_GATEWAY_HTTP_PORT"]),
            https_port=int(environment["PHOTOMESH_GATEWAY_HTTPS_PORT"]),
            admin_port=int(environment["PHOTOMESH_GATEWAY_ADMIN_PORT"]),
            descriptors=descriptors,
            jwks=Path(environment["PHOTOMESH_JWKS_FILE"]),
            public_certificate=Path(environment["PHOTOMESH_PUBLIC_CERTIFICATE"]),
            public_key=Path(environment["PHOTOMESH_PUBLIC_KEY"]),
            identity=Path(environment["PHOTOMESH_TLS_DIR"]),
            services={
                # The process `feed` serves photomesh.feed.v1.FeedService.
                service: _peer(service.split(".")[1], environment)
                for service in public_services(public_methods(descriptors))
            },
            pages={
                method: _peer(process.name, environment, "_REST")
                for process in MESH
                for method in process.rest_methods
            },
            reflection=_peer("reflection", environment),
            cors_origins=tuple(environment.get("PHOTOMESH_CORS_ORIGINS", "").split()),
        )
    )


def _peer(identity: str, environment: Mapping[str, str], suffix: str = "") -> envoy.Peer:
    host, _, port = environment[f"{variable(identity)}{suffix}"].rpartition(":")
    return envoy.Peer(host, int(port), identity)


def _edge(environment: Mapping[str, str]) -> str:
    return edge.build(
        edge.EdgeSettings(
            port=int(environment["PHOTOMESH_EDGE_PORT"]),
            admin_port=int(environment["PHOTOMESH_EDGE_ADMIN_PORT"]),
            s3_host=environment["PHOTOMESH_S3_HOST"],
            s3_port=int(environment["PHOTOMESH_S3_PORT"]),
            bucket=environment["PHOTOMESH_MEDIA_BUCKET"],
            access_key=environment["PHOTOMESH_S3_ACCESS_KEY"],
            secret_key=environment["PHOTOMESH_S3_SECRET_KEY"],
            region=environment["PHOTOMESH_S3_REGION"],
            token_secret=bytes.fromhex(Path(environment["PHOTOMESH_CDN_KEY_FILE"]).read_text()),
            cache_folder=Path(environment["PHOTOMESH_EDGE_CACHE_DIR"]),
        )
    )


_BUILDERS: dict[str, Callable[[Mapping[str, str]], str]] = {"gateway": _gateway, "edge": _edge}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Prints the Envoy configuration of the gateway or of the CDN edge.",
        epilog=f"variables of the gateway:\n{_GATEWAY}\nvariables of the edge:\n{_EDGE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=_BUILDERS, help="the Envoy to configure")
    build = _BUILDERS[parser.parse_args().part]
    try:
        configuration = build(os.environ)
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set; python -m gateway --help describes it")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(configuration)  # noqa: T201  (the output of the command)


if __name__ == "__main__":
    main()
