"""What can go wrong with follows."""

import grpc

from services.common.errors import MeshError


class SelfFollow(MeshError):
    """An account does not follow itself."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "SELF_FOLLOW"

    def __init__(self) -> None:
        super().__init__(
            "You cannot follow yourself.", fields={"account_id": "must be somebody else's"}
        )


class FollowLimit(MeshError):
    """The caller follows as many accounts as one may."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FOLLOW_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(f"You follow {limit:,} accounts already, which is the most one may.")
