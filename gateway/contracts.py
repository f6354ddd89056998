"""The gateway's public API, read from the contracts.

A proto service is public if one of its methods has a `google.api.http` rule. The gateway routes
only public services, so internal methods are unreachable from outside by construction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2
from photomesh.common.v1 import options_pb2

_FILE = ".google.api.HttpBody"


@dataclass(frozen=True)
class PublicMethod:
    """One method that external clients can call."""

    # The full name of the proto service, such as "photomesh.feed.v1.FeedService".
    service: str
    name: str
    # The REST request that is transcoded to the method: the verb in capitals and the path template.
    # Empty: the method is available over gRPC only.
    http_verb: str
    http_path: str
    # Whether it has no side effects, so that it can be retried.
    reads: bool
    # Whether the request or the response is a stream.
    streams: bool
    # Whether it can be called without an access token.
    without_token: bool
    # The message that is the whole REST request body. Empty: the request has no body. `name` is the
    # message's full name. `fields` maps each field, under both its proto and its JSON name, to its
    # `proto_name`, whether it is `repeated`, and, for a message, its `name` and `fields`. True: the
    # content is not described.
    body: Mapping[str, object]
    # Whether the REST request body is a file.
    takes_file: bool

    @property
    def path(self) -> str:
        """The path of the gRPC request."""
        return f"/{self.service}/{self.name}"

    @property
    def http_pattern(self) -> str:
        """The REST paths that match the template, as a regular expression."""
        literals = re.split(r"\{[^}]*\}", self.http_path)
        return "[^/:]+".join(re.escape(literal) for literal in literals)


def public_methods(descriptors: Path) -> tuple[PublicMethod, ...]:
    """Returns the public methods in a file that holds a FileDescriptorSet, in file order.

    Raises:
        ValueError: a method of a public service has no REST path (a method that has none on purpose
        sets an idempotency level), or uses a feature that the gateway does not support.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    messages = _Messages(files)
    return tuple(
        _public_method(file, service, method, messages)
        for file in files.file
        for service in file.service
        if any(_rule(method) for method in service.method)
        for method in service.method
    )


def public_services(methods: tuple[PublicMethod, ...]) -> tuple[str, ...]:
    """Returns the full names of the methods' services, without duplicates, in order."""
    return tuple(dict.fromkeys(method.service for method in methods))


def _public_method(
    file: descriptor_pb2.FileDescriptorProto,
    service: descriptor_pb2.ServiceDescriptorProto,
    method: descriptor_pb2.MethodDescriptorProto,
    messages: "_Messages",
) -> PublicMethod:
    name = f"{file.package}.{service.name}.{method.name}"
    rule = _rule(method)
    if rule is None:
        if not method.options.HasField("idempotency_level"):
            raise ValueError(
                f"{name} has no google.api.http rule, but other methods of its service do: add "
                "one, or set an idempotency_level to serve it over gRPC only"
            )
        return PublicMethod(
            service=f"{file.package}.{service.name}",
            name=method.name,
            http_verb="",
            http_path="",
            reads=method.options.idempotency_level == method.options.NO_SIDE_EFFECTS,
            streams=method.server_streaming or method.client_streaming,
            without_token=method.options.Extensions[options_pb2.without_token],
            body={},
            takes_file=False,
        )
    verb = rule.WhichOneof("pattern")
    path = getattr(rule, verb or "get")
    if verb in (None, "custom") or rule.additional_bindings or "=" in path:
        raise ValueError(f"the google.api.http rule of {name} uses a pattern that is not supported")
    if rule.body not in ("", "*") and not _is_file(method, rule.body, messages):
        raise ValueError(f"the body of {name} is a single field, which only file uploads support")
    return PublicMethod(
        service=f"{file.package}.{service.name}",
        name=method.name,
        http_verb=verb.upper(),
        http_path=path,
        reads=verb == "get",
        streams=method.server_streaming or method.client_streaming,
        without_token=method.options.Extensions[options_pb2.without_token],
        body=_without_bound(messages.describe(method.input_type), path) if rule.body == "*" else {},
        takes_file=rule.body not in ("", "*"),
    )


def _is_file(
    method: descriptor_pb2.MethodDescriptorProto, field: str, messages: "_Messages"
) -> bool:
    """Reports whether a field takes a body of any type unchanged, in chunks."""
    return method.client_streaming and messages.type_of(method.input_type, field) == _FILE


def _without_bound(message: Mapping[str, Any], path: str) -> dict[str, object]:
    """Returns a message description without the fields that the path binds."""
    bound = {name.replace("_", "") for name in re.findall(r"\{([^}]*)\}", path)}
    fields = {
        name: description
        for name, description in message["fields"].items()
        if name.replace("_", "").lower() not in bound
    }
    return {**message, "fields": fields}


def _rule(method: descriptor_pb2.MethodDescriptorProto) -> http_pb2.HttpRule | None:
    # Importing annotations_pb2 registers the extension in this process.
    if not method.options.HasExtension(annotations_pb2.http):
        return None
    return method.options.Extensions[annotations_pb2.http]


class _Messages:
    """Describes messages by their fields."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._by_name: dict[str, descriptor_pb2.DescriptorProto] = {}
        for file in files.file:
            for message in file.message_type:
                self._add(f".{file.package}", message)

    def _add(self, scope: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{scope}.{message.name}"
        self._by_name[name] = message
        for nested in message.nested_type:
            self._add(name, nested)

    def type_of(self, name: str, field: str) -> str:
        """Returns the full name of a field's message type. Empty: no such field, or a scalar."""
        return next((f.type_name for f in self._by_name[name].field if f.name == field), "")

    def describe(self, name: str, within: frozenset[str] = frozenset()) -> dict[str, object]:
        fields: dict[str, object] = {}
        for field in self._by_name[name].field:
            description = self._description(field, within | {name})
            fields[field.name] = fields[field.json_name] = description
        return {"name": name.removeprefix("."), "fields": fields}

    def _description(
        self, field: descriptor_pb2.FieldDescriptorProto, within: frozenset[str]
    ) -> dict[str, object] | bool:
        base = {"proto_name": field.name, "repeated": field.label == field.LABEL_REPEATED}
        if field.type != field.TYPE_MESSAGE:
            return base
        name = field.type_name
        # Google's well-known types have JSON forms of their own, a map has arbitrary keys, and a
        # recursive message has no finite description.
        if name.startswith(".google.protobuf.") or name in within or self._is_map(name):
            return True
        return base | self.describe(name, within)

    def _is_map(self, name: str) -> bool:
        return self._by_name[name].options.map_entry
