"""gRPC and REST: servers, callers, clients, page tokens."""

from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
"""What gRPC passes to each handler besides the request."""
