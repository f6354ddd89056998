"""gRPC and REST: servers, callers, clients, page tokens."""
