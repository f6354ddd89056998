"""What the gateway offers, read out of the contracts.

A proto service is public when one of its methods has a `google.api.http` rule: only those are
routed, so an internal method cannot be reached from outside by construction.
"""

from dataclasses import dataclass
from pathlib import Path

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2


@dataclass(frozen=True)
class PublicMethod:
    """One method that people outside may call."""

    # The full name of its proto service, such as "photomesh.feed.v1.FeedService".
    service: str
    name: str
    # The REST request that is transcoded to it: the verb in capitals and the path template.
    http_verb: str
    http_path: str
    # Whether it answers with a stream.
    streams: bool

    @property
    def path(self) -> str:
        """The path of the gRPC request."""
        return f"/{self.service}/{self.name}"

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may be sent twice."""
        return self.http_verb == "GET"


def public_methods(descriptors: Path) -> tuple[PublicMethod, ...]:
    """Returns the public methods in a file that holds a FileDescriptorSet, in its order.

    Raises ValueError for a public service that has a method without a REST path: it would be
    half public.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    return tuple(
        method
        for file in files.file
        for service in file.service
        if any(_rule(method) for method in service.method)
        for method in _methods(f"{file.package}.{service.name}", service)
    )


def public_services(methods: tuple[PublicMethod, ...]) -> tuple[str, ...]:
    """Returns the full names of the services that the methods belong to, each once, in order."""
    return tuple(dict.fromkeys(method.service for method in methods))


def _methods(name: str, service: descriptor_pb2.ServiceDescriptorProto) -> list[PublicMethod]:
    methods = []
    for method in service.method:
        rule = _rule(method)
        if rule is None:
            raise ValueError(f"{name}.{method.name} has no google.api.http rule, others have one")
        verb = rule.WhichOneof("pattern")
        if verb is None or verb == "custom":
            raise ValueError(f"{name}.{method.name}: its google.api.http rule names no plain verb")
        methods.append(
            PublicMethod(
                service=name,
                name=method.name,
                http_verb=verb.upper(),
                http_path=getattr(rule, verb),
                streams=method.server_streaming,
            )
        )
    return methods


def _rule(method: descriptor_pb2.MethodDescriptorProto) -> http_pb2.HttpRule | None:
    # The extension is known to this process because annotations_pb2 is imported.
    if not method.options.HasExtension(annotations_pb2.http):
        return None
    return method.options.Extensions[annotations_pb2.http]
