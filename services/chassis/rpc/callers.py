"""The identities that may call a method, as its contract lists them."""

import functools

from google.protobuf import descriptor_pool
from photomesh.common.v1 import options_pb2

GATEWAY = "gateway"
"""Calls on behalf of users. Only the gateway may name the signed-in user."""

OPERATOR = "operator"
"""A site reliability engineer. Each of its calls is written to the audit log."""


@functools.cache
def callers_of(method: str) -> frozenset[str]:
    """Returns the identities that may call the method at a gRPC path.

    The set is empty if no contract describes the method or its contract lists no callers.
    """
    service_name, _, method_name = method.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        own = service.methods_by_name[method_name].GetOptions().Extensions[options_pb2.callers]
    except KeyError:
        return frozenset()
    return frozenset(own or service.GetOptions().Extensions[options_pb2.default_callers])
