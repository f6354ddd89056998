"""Who may call a method: the identities that the contract names, and nobody else."""

import functools

from google.protobuf import descriptor_pool
from photomesh.common.v1 import options_pb2

GATEWAY = "gateway"
"""Calls on behalf of people: it alone may say who is signed in."""

OPERATOR = "operator"
"""A site reliability engineer. Each call is an audit log event."""


@functools.cache
def callers_of(method: str) -> frozenset[str]:
    """Returns the identities that may call the method at a gRPC path.

    A method that no contract describes, or whose contract names no callers, has none.
    """
    service_name, _, method_name = method.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        own = service.methods_by_name[method_name].GetOptions().Extensions[options_pb2.callers]
    except KeyError:
        return frozenset()
    return frozenset(own or service.GetOptions().Extensions[options_pb2.default_callers])
