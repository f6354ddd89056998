"""Errors that several services raise."""

import grpc

from services.chassis.errors import MeshError


class AccountUnknown(MeshError):
    """The account does not exist, or it was deleted."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "ACCOUNT_UNKNOWN"

    def __init__(self, account_id: int) -> None:
        super().__init__(
            f"Account {account_id} does not exist.", fields={"account_id": "does not exist"}
        )


class MediaUnknown(MeshError):
    """The media item does not exist or belongs to another account. The error does not say which."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MEDIA_UNKNOWN"

    def __init__(self, media_id: int, field: str = "media_id") -> None:
        super().__init__(
            f"You have no media {media_id}.",
            fields={field: "does not exist, or belongs to another account"},
        )
