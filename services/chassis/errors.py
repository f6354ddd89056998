"""Errors with their gRPC status and reason, and their encoding.

A service raises a subclass of `MeshError`, and the server encodes it as google.rpc.Status with
ErrorInfo, BadRequest and RetryInfo. For any other exception, the caller gets INTERNAL without the
exception's text.
"""

from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from photomesh.common.v1.error_reason_pb2 import ErrorReason

DOMAIN = "photomesh"
"""google.rpc.ErrorInfo.domain of all errors of this project."""

STATUS_DETAILS = "grpc-status-details-bin"
"""The key of the trailing metadata that holds the encoded error, a google.rpc.Status."""

_PROBLEMS_IN_MESSAGE = 5
"""How many invalid fields the message of an error names. The details name all of them. Message and
details are sent as trailers, which gRPC limits to 8 KiB."""


class MeshError(Exception):
    """Base of all errors that callers receive. Subclasses set `code` and `reason`."""

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]
    """A name of photomesh.common.v1.ErrorReason without its prefix."""

    def __init__(
        self,
        message: str,
        *,
        fields: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Creates an error.

        Args:
            message: a sentence for developers.
            fields: the invalid fields, each with its problem.
            retry_after: the seconds to wait before a retry; None: no RetryInfo is sent.
        """
        super().__init__(message)
        self.message = message
        self.fields = dict(fields or {})
        self.retry_after = retry_after

    def __init_subclass__(cls) -> None:
        # A reason that the contract does not list fails here, at import, and not in a client.
        if hasattr(cls, "reason"):
            ErrorReason.Value(f"ERROR_REASON_{cls.reason}")

    def to_status(self, trace_id: str) -> status_pb2.Status:
        """Returns the encoded error. The trace id identifies it in the logs."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(
            error_details_pb2.ErrorInfo(
                reason=self.reason, domain=DOMAIN, metadata={"traceId": trace_id}
            )
        )
        if self.fields:
            status.details.add().Pack(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                        for field, text in self.fields.items()
                    ]
                )
            )
        if self.retry_after is not None:
            delay = Duration()
            delay.FromMilliseconds(round(self.retry_after * 1000))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status


class FieldInvalid(MeshError):
    """A field has an invalid value."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FIELD_INVALID"

    def __init__(self, fields: Mapping[str, str]) -> None:
        problems = [f"{field}: {text}" for field, text in fields.items()]
        more = len(problems) - _PROBLEMS_IN_MESSAGE
        summary = "; ".join(problems[:_PROBLEMS_IN_MESSAGE]) + (f"; and {more} more" * (more > 0))
        super().__init__(f"The request is not valid: {summary}.", fields=fields)


class RequestMalformed(MeshError):
    """The request cannot be parsed."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "REQUEST_MALFORMED"


class BadPageToken(MeshError):
    """A page token was not issued by this method to this caller."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "BAD_PAGE_TOKEN"

    def __init__(self) -> None:
        super().__init__(
            "This method did not issue the page token to you; start again without a token.",
            fields={"page_token": "must be a next_page_token of this method, or empty"},
        )


class TokenMissing(MeshError):
    """The call requires a signed-in user and has none."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("This call needs an access token.")


class CallerNotAllowed(MeshError):
    """The peer may not call this method."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "CALLER_NOT_ALLOWED"

    def __init__(self, caller: str, method: str) -> None:
        super().__init__(f"{caller or 'An unknown peer'} may not call {method}.")


class Unavailable(MeshError):
    """A dependency is unavailable, slow or overloaded; a retry may succeed.

    Stores, caches and peer clients convert the errors of their drivers into this error.
    """

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"

    def __init__(self, part: str) -> None:
        super().__init__(f"{part} is not available now; retry with backoff.", retry_after=1.0)


class DeadlineExceeded(MeshError):
    """The call exceeded its deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("The call took longer than its deadline.")


class Internal(MeshError):
    """An unexpected error. Its text appears only in the logs."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self) -> None:
        super().__init__("An internal error occurred; include the trace id when you report it.")


class RequestIdReused(MeshError):
    """The request id was already used for a different request."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"

    def __init__(self) -> None:
        super().__init__(
            "This request id was already used for a different request.",
            fields={"request_id": "must be unique to the request"},
        )


class DeadLetterUnknown(MeshError):
    """The dead letter does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "DEAD_LETTER_UNKNOWN"

    def __init__(self, dead_letter_id: int) -> None:
        super().__init__(f"Dead letter {dead_letter_id} does not exist.")
