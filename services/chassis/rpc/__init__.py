"""gRPC and REST: servers, callers, clients, page tokens."""

from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""The second argument of each handler, which gRPC passes."""
