"""What the gateway offers, read out of the contracts.

A proto service is public when one of its methods has a `google.api.http` rule: only those are
routed, so an internal method cannot be reached from outside by construction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2

_FILE = ".google.api.HttpBody"


@dataclass(frozen=True)
class PublicMethod:
    """One method that people outside may call."""

    # The full name of its proto service, such as "photomesh.feed.v1.FeedService".
    service: str
    name: str
    # The REST request that is transcoded to it: the verb in capitals and the path template. Both
    # are empty for a method that is for gRPC alone.
    http_verb: str
    http_path: str
    # Whether it changes nothing, so that it may be sent twice.
    reads: bool
    # Whether it is asked or answers with a stream.
    streams: bool
    # The message that is the REST request's whole body, empty if none is. `name` is its full name,
    # `fields` are its fields, each under both of its names: what it is `called` in the contract,
    # whether it is a list (`many`), and the `name` and `fields` of messages that it holds. True:
    # nothing is known of what it holds.
    body: Mapping[str, object]
    # Whether the REST request's body is the bytes of a file.
    takes_file: bool

    @property
    def path(self) -> str:
        """The path of the gRPC request."""
        return f"/{self.service}/{self.name}"

    @property
    def http_pattern(self) -> str:
        """The REST paths that fit the template, as a regular expression."""
        literals = re.split(r"\{[^}]*\}", self.http_path)
        return "[^/:]+".join(re.escape(literal) for literal in literals)


def public_methods(descriptors: Path) -> tuple[PublicMethod, ...]:
    """Returns the public methods in a file that holds a FileDescriptorSet, in its order.

    Raises:
        ValueError: a public service has a method whose REST path was forgotten (one that has none
            on purpose has an idempotency level), or is of a kind that the gateway does not know.
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
    """Returns the full names of the services that the methods belong to, each once, in order."""
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
            raise ValueError(f"{name} has no google.api.http rule, other methods of its service do")
        return PublicMethod(
            service=f"{file.package}.{service.name}",
            name=method.name,
            http_verb="",
            http_path="",
            reads=method.options.idempotency_level == method.options.NO_SIDE_EFFECTS,
            streams=method.server_streaming or method.client_streaming,
            body={},
            takes_file=False,
        )
    verb = rule.WhichOneof("pattern")
    path = getattr(rule, verb or "get")
    if verb in (None, "custom") or rule.additional_bindings or "=" in path:
        raise ValueError(f"the google.api.http rule of {name} is of a kind that is not routed yet")
    if rule.body not in ("", "*") and not _is_file(method, rule.body, messages):
        raise ValueError(f"the body of {name} is one field, which is not checked yet")
    return PublicMethod(
        service=f"{file.package}.{service.name}",
        name=method.name,
        http_verb=verb.upper(),
        http_path=path,
        reads=verb == "get",
        streams=method.server_streaming or method.client_streaming,
        body=_without_bound(messages.describe(method.input_type), path) if rule.body == "*" else {},
        takes_file=rule.body not in ("", "*"),
    )


def _is_file(
    method: descriptor_pb2.MethodDescriptorProto, field: str, messages: "_Messages"
) -> bool:
    """Tells whether a field takes a body of any type as it is, piece by piece."""
    return method.client_streaming and messages.type_of(method.input_type, field) == _FILE


def _without_bound(message: Mapping[str, Any], path: str) -> dict[str, object]:
    """Returns a message without the fields that stand in the path and so not in the body."""
    bound = {name.replace("_", "") for name in re.findall(r"\{([^}]*)\}", path)}
    fields = {
        name: held
        for name, held in message["fields"].items()
        if name.replace("_", "").lower() not in bound
    }
    return {**message, "fields": fields}


def _rule(method: descriptor_pb2.MethodDescriptorProto) -> http_pb2.HttpRule | None:
    # The extension is known to this process because annotations_pb2 is imported.
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
        """Returns the full name of the message in a field; empty: it holds none, or is none."""
        return next((f.type_name for f in self._by_name[name].field if f.name == field), "")

    def describe(self, name: str, within: frozenset[str] = frozenset()) -> dict[str, object]:
        fields: dict[str, object] = {}
        for field in self._by_name[name].field:
            held = self._held(field, within | {name})
            fields[field.name] = fields[field.json_name] = held
        return {"name": name.removeprefix("."), "fields": fields}

    def _held(
        self, field: descriptor_pb2.FieldDescriptorProto, within: frozenset[str]
    ) -> dict[str, object] | bool:
        plain = {"called": field.name, "many": field.label == field.LABEL_REPEATED}
        if field.type != field.TYPE_MESSAGE:
            return plain
        name = field.type_name
        # Google's own types have JSON forms of their own, a map has any keys, and a message within
        # itself has no end.
        if name.startswith(".google.protobuf.") or name in within or self._is_map(name):
            return True
        return plain | self.describe(name, within)

    def _is_map(self, name: str) -> bool:
        return self._by_name[name].options.map_entry
