"""Errors of the graph service."""

import grpc

from services.chassis.errors import MeshError


class OwnAccount(MeshError):
    """An account cannot follow, block or mute itself."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "OWN_ACCOUNT"

    def __init__(self) -> None:
        super().__init__(
            "You cannot do this to your own account.",
            fields={"account_id": "must be another account"},
        )


class FollowLimit(MeshError):
    """The caller has reached the limit of follows and follow requests."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FOLLOW_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"You follow or have asked to follow {limit:,} accounts, which is the limit. Unfollow "
            "one first."
        )


class MuteLimit(MeshError):
    """The caller has reached the limit of mutes."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MUTE_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(f"You mute {limit:,} accounts, which is the limit. Unmute one first.")


class FollowRequestUnknown(MeshError):
    """The account has not requested to follow the caller, and does not follow the caller."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "FOLLOW_REQUEST_UNKNOWN"

    def __init__(self, account_id: int) -> None:
        super().__init__(
            f"Account {account_id} has not asked to follow you.",
            fields={"account_id": "has no pending request"},
        )


class AccountPrivate(MeshError):
    """The account is private, and the caller does not follow it."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "ACCOUNT_PRIVATE"

    def __init__(self, account_id: int) -> None:
        super().__init__(f"Account {account_id} is private; follow it to see its lists.")
