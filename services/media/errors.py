"""The errors of uploads."""

import grpc

from services.chassis.errors import MeshError


class ObjectMissing(MeshError):
    """The file of a media item is not uploaded yet, or only in part."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISSING"

    def __init__(self, media_id: int, missing: str = "The file") -> None:
        super().__init__(f"{missing} of media {media_id} was not uploaded yet.")


class ObjectMismatch(MeshError):
    """The uploaded file does not match its declaration."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISMATCH"

    def __init__(self, media_id: int, what: str) -> None:
        super().__init__(f"The file of media {media_id} is not of the declared {what}.")


class UploadCompleted(MeshError):
    """The upload is already completed."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_COMPLETED"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"The upload of media {media_id} was completed before.")


class UploadNotMultipart(MeshError):
    """The upload was not opened with CreateMultipartUpload."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_NOT_MULTIPART"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"The upload of media {media_id} is not one in parts.")


class UploadUnknown(MeshError):
    """The caller has no streamed upload with this request id."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UPLOAD_UNKNOWN"

    def __init__(self) -> None:
        super().__init__(
            "You stream nothing with this request id.", fields={"request_id": "is unknown"}
        )


class UploadLimit(MeshError):
    """The caller has reached the limit of open uploads."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"You have {limit:,} uploads open, which is the most one may: complete or abort some."
        )


class StreamTooSlow(MeshError):
    """A stream was slower than the minimum speed for too long."""

    code = grpc.StatusCode.ABORTED
    reason = "STREAM_TOO_SLOW"

    def __init__(self, bytes_per_second: int) -> None:
        super().__init__(
            f"The stream brought fewer than {bytes_per_second:,} bytes a second. Ask "
            "GetUploadOffset how many bytes are safe, and continue from there."
        )
