"""What can go wrong with uploads."""

import grpc

from services.common.errors import MeshError


class ObjectMissing(MeshError):
    """Nothing was uploaded for a media item yet."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISSING"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"The file of media {media_id} was not uploaded yet.")


class ObjectMismatch(MeshError):
    """What was uploaded is not what was declared."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISMATCH"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"The file of media {media_id} is not of the declared size and type.")


class UploadCompleted(MeshError):
    """The upload of a request id was completed before."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_COMPLETED"

    def __init__(self, media_id: int) -> None:
        super().__init__(
            f"The upload with this request id was completed before, as media {media_id}.",
            fields={"request_id": "must be new for a new upload"},
        )
