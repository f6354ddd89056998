"""All methods of all contracts, and a valid request for each, derived from the descriptors."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import protovalidate
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from deploy.processes import MESH
from services.chassis.rpc import methods

_GEN = Path(__file__).parents[1] / "gen"

# Candidates for the value of a field; the first that satisfies its rules is used.
_CANDIDATES = {
    FieldDescriptor.CPPTYPE_STRING: ("image/jpeg", "a", "abcdefgh", "0123456789abcdef" * 4),
    FieldDescriptor.CPPTYPE_BOOL: (True,),
}
_NUMBERS = (1, 2, 100, 1000)

_CONSUMERS = [process.name for process in MESH if process.consumes]


@dataclass(frozen=True)
class Method:
    """One method of a contract, in one of the processes that serve it."""

    descriptor: MethodDescriptor
    process: str

    @cached_property
    def contract(self) -> methods.Method:
        """What its options declare."""
        return methods.Method.of(self.descriptor)

    @property
    def path(self) -> str:
        """The gRPC path, such as "/photomesh.feed.v1.FeedService/GetFeed"."""
        return self.contract.path

    @property
    def is_for_operators(self) -> bool:
        return self.descriptor.containing_service.name.endswith(
            ("AdminService", "DeadLetterService")
        )

    @property
    def is_public(self) -> bool:
        internal = self.descriptor.containing_service.name.endswith("InternalService")
        return not internal and not self.is_for_operators

    @property
    def writes(self) -> bool:
        """Whether the method is a write."""
        if self._rule is not None:
            return self._rule.WhichOneof("pattern") != "get"
        return not self.descriptor.name.startswith(
            ("Get", "List", "Watch", "Stream", "Inspect", "BatchGet", "BatchCheck")
        )

    @property
    def _rule(self):
        options = self.descriptor.GetOptions()
        if not options.HasExtension(annotations_pb2.http):
            return None
        return options.Extensions[annotations_pb2.http]

    @cached_property
    def request(self) -> type[Message]:
        return GetMessageClass(self.descriptor.input_type)

    def __str__(self) -> str:
        return f"{self.path.rpartition('.')[2]} of {self.process}"


def all_methods() -> list[Method]:
    """Returns every method of every contract, once for each process that serves it."""
    found = []
    for path in sorted(_GEN.glob("photomesh/*/v1/*_service_pb2.py")):
        name = ".".join(path.relative_to(_GEN).with_suffix("").parts)
        file = importlib.import_module(name).DESCRIPTOR
        for service in file.services_by_name.values():
            package = file.package.split(".")[1]
            # Every consumer of events serves the dead letters' contract.
            served_by = _CONSUMERS if package == "common" else [package]
            found += [Method(each, process) for process in served_by for each in service.methods]
    assert found
    return found


def valid_request(kind: type[Message]) -> Message:
    """Returns a request that satisfies all rules, with all fields of our own messages set."""
    request = kind()
    for field in kind.DESCRIPTOR.fields:
        _fill(request, field)
    assert not protovalidate.collect_violations(request), kind.DESCRIPTOR.full_name
    return request


def _fill(message: Message, field: FieldDescriptor) -> None:
    if field.message_type is not None:
        if field.message_type.file.package.startswith("photomesh."):
            item = valid_request(GetMessageClass(field.message_type))
            if field.is_repeated:
                getattr(message, field.name).append(item)
            else:
                getattr(message, field.name).CopyFrom(item)
        return
    for candidate in _CANDIDATES.get(field.cpp_type, _NUMBERS):
        if field.is_repeated:
            getattr(message, field.name)[:] = [candidate]
        else:
            setattr(message, field.name, candidate)
        if not any(
            violation.proto.field.elements[0].field_name == field.name
            for violation in protovalidate.collect_violations(message)
        ):
            return
    raise AssertionError(f"no candidate satisfies the rules of {field.full_name}: add one")


def fields_of(message: Message, scope: str = "") -> Iterator[tuple[str, Message, FieldDescriptor]]:
    """Yields the path, the message and the descriptor of each field of each message that is set,
    at any depth."""
    for field in message.DESCRIPTOR.fields:
        yield scope + field.name, message, field
        if field.message_type is None:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from fields_of(item, f"{scope}{field.name}[{index}].")
        elif message.HasField(field.name):
            yield from fields_of(value, f"{scope}{field.name}.")
