"""Errors of the post service."""

from collections.abc import Mapping

import grpc

from services.chassis.errors import MeshError


class PostUnknown(MeshError):
    """There is no such post, or the caller may not see it; the error does not reveal which."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "POST_UNKNOWN"

    def __init__(self, post_id: int) -> None:
        super().__init__(f"There is no post {post_id}.", fields={"post_id": "is unknown"})


class PostNotPublished(MeshError):
    """The post is PROCESSING or FAILED, so it cannot be archived."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "POST_NOT_PUBLISHED"

    def __init__(self, post_id: int) -> None:
        super().__init__(f"Post {post_id} is not published, so it cannot be archived.")


class MediaNotUploaded(MeshError):
    """The upload of some media was not completed, and may never be."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MEDIA_NOT_UPLOADED"

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("Complete the upload of every media item before posting.", fields=fields)


class MediaFailed(MeshError):
    """Some of the media cannot be processed, so the post can never be published."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MEDIA_FAILED"

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__("Some of the media cannot be processed; leave them out.", fields=fields)
