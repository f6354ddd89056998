"""What can go wrong with feeds."""

import grpc

from services.common.errors import MeshError


class TooManyWatchers(MeshError):
    """As many watch feeds as one process serves, or as one person may at a time."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=5.0)
