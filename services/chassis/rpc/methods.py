"""The options of a method in its contract, and well-known callers."""

from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from photomesh.common.v1 import options_pb2

GATEWAY = "gateway"
"""Calls on behalf of users. Only the gateway may name the signed-in user."""

OPERATOR = "operator"
"""A site reliability engineer. Each of its calls is written to the audit log."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its options."""

    path: str
    """The gRPC path, such as "/photomesh.bookmark.v1.BookmarkService/GetBookmark"."""
    callers: frozenset[str]
    """The identities that may call it. Empty if the contract lists none."""
    without_token: bool
    """Whether users who are not signed in may call it."""
    streams: bool
    """Whether its requests or its responses are a stream."""

    @classmethod
    def of(cls, method: MethodDescriptor) -> "Method":
        """Reads the contract of a method."""
        service = method.containing_service
        return cls(
            path=f"/{service.full_name}/{method.name}",
            callers=frozenset(
                method.GetOptions().Extensions[options_pb2.callers]
                or service.GetOptions().Extensions[options_pb2.default_callers]
            ),
            without_token=method.GetOptions().Extensions[options_pb2.without_token],
            streams=bool(method.client_streaming or method.server_streaming),
        )
