"""The errors of uploads."""

import grpc

from services.chassis.errors import MeshError


class ObjectMissing(MeshError):
    """The file of a media item is not uploaded yet, or only partially."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISSING"

    def __init__(self, media_id: int, missing: str = "The file") -> None:
        super().__init__(f"{missing} of media {media_id} is not uploaded yet; upload it first.")


class ObjectMismatch(MeshError):
    """The uploaded file does not match its declaration."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBJECT_MISMATCH"

    def __init__(self, media_id: int, what: str) -> None:
        super().__init__(f"The {what} of media {media_id}'s file does not match the declared one.")


class UploadCompleted(MeshError):
    """The upload is already completed."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_COMPLETED"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"The upload of media {media_id} is already completed.")


class UploadNotMultipart(MeshError):
    """The upload was not opened with CreateMultipartUpload."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_NOT_MULTIPART"

    def __init__(self, media_id: int) -> None:
        super().__init__(f"Media {media_id} is not uploaded in parts.")


class UploadUnknown(MeshError):
    """The caller has no streamed upload with this request id."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UPLOAD_UNKNOWN"

    def __init__(self) -> None:
        super().__init__(
            "You have no streamed upload with this request id.",
            fields={"request_id": "is unknown"},
        )


class UploadLimit(MeshError):
    """The caller has reached the limit of open uploads."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPLOAD_LIMIT"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"You have {limit:,} open uploads, which is the limit. Complete or abort some first."
        )


class StreamTooSlow(MeshError):
    """A stream was slower than the minimum speed for too long."""

    code = grpc.StatusCode.ABORTED
    reason = "STREAM_TOO_SLOW"

    def __init__(self, bytes_per_second: int) -> None:
        super().__init__(
            f"The stream was slower than {bytes_per_second:,} bytes per second. Call "
            "GetUploadOffset, and resume from the offset that it returns."
        )
