"""Envoy's own error responses, in the format that the services use.

For REST, the format is the JSON of a google.rpc.Status; for gRPC, the status with its details. A
service's own errors are not converted here: the transcoder prints them unchanged.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ExtensionFilter
from envoy_data_plane.envoy.config.core.v3 import DataSource, SubstitutionFormatString
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Any, Struct
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from photomesh.common.v1.error_reason_pb2 import ErrorReason

from gateway import pieces

DOMAIN = "photomesh"
_TYPES = "type.googleapis.com/"

# Marks responses to which a filter can add the field named in the text; see strict.lua.
MALFORMED_MARK = "x-photomesh-malformed"

# A response can echo the request, so browsers must not render it as a page.
_NOT_A_PAGE = (
    pieces.set_header("content-security-policy", "default-src 'none'; sandbox"),
    pieces.set_header("x-content-type-options", "nosniff"),
)

# Envoy's own text, which describes the error in the request.
_TEXT = "%LOCAL_REPLY_BODY%"


@dataclass(frozen=True)
class Refusal:
    """One type of error response."""

    # A CEL expression that matches Envoy's response.
    when: str
    reason: str
    code: "code_pb2.Code"
    # A sentence for developers. None: Envoy's own text.
    message: str | None
    # The HTTP status. None: Envoy's own.
    http_status: int | None = None
    # The gRPC status, where gRPC's convention differs. None: `code`.
    grpc_code: "code_pb2.Code | None" = None

    def __post_init__(self) -> None:
        # A reason that is missing in the contract must fail here, not in a client.
        ErrorReason.Value(f"ERROR_REASON_{self.reason}")


_TOKEN_REFUSED = "response.code_details.startsWith('jwt_authn_access_denied{"  # noqa: S105

TOKEN_REFUSALS = (
    Refusal(
        when=_TOKEN_REFUSED + "Jwt_is_missing')",
        reason="TOKEN_MISSING",
        code=code_pb2.UNAUTHENTICATED,
        message="This call needs an access token.",
    ),
    Refusal(
        when=_TOKEN_REFUSED + "Jwt_is_expired')",
        reason="TOKEN_EXPIRED",
        code=code_pb2.UNAUTHENTICATED,
        message="The token has expired; request a new one.",
    ),
    Refusal(
        when=_TOKEN_REFUSED + "')",
        reason="TOKEN_INVALID",
        code=code_pb2.UNAUTHENTICATED,
        message="The token is not valid; request a new one.",
        # Envoy returns 403 for a token with a wrong audience, and 401 for all other invalid tokens.
        http_status=401,
    ),
)

ROUTE_UNKNOWN = Refusal(
    when="response.code == 404",
    reason="ROUTE_UNKNOWN",
    code=code_pb2.NOT_FOUND,
    grpc_code=code_pb2.UNIMPLEMENTED,
    message="The path or method does not exist.",
)
MALFORMED = Refusal(
    when="response.code == 400 && (response.code_details.contains('transcode_failure')"
    " || response.code_details == 'lua_response')",
    reason="REQUEST_MALFORMED",
    code=code_pb2.INVALID_ARGUMENT,
    message=None,
)

# Errors of every listener. The last two match everything not matched before.
COMMON_REFUSALS = (
    Refusal(
        when="response.code in [413, 431]",
        reason="REQUEST_MALFORMED",
        code=code_pb2.INVALID_ARGUMENT,
        message="The request is too large.",
    ),
    MALFORMED,
    Refusal(
        when="response.code in [408, 504]",
        reason="DEADLINE_EXCEEDED",
        code=code_pb2.DEADLINE_EXCEEDED,
        message="The call took longer than its deadline.",
    ),
    Refusal(
        when="response.code in [502, 503]",
        reason="UNAVAILABLE",
        code=code_pb2.UNAVAILABLE,
        message="A part of the system is not available now; retry with backoff.",
    ),
    Refusal(
        when="response.code >= 400 && response.code < 500",
        reason="REQUEST_MALFORMED",
        code=code_pb2.INVALID_ARGUMENT,
        message="The request cannot be read.",
    ),
    Refusal(
        when="response.code >= 500",
        reason="INTERNAL",
        code=code_pb2.INTERNAL,
        message="An internal error occurred; include the request id when you report it.",
    ),
)


def status_json(refusal: Refusal, message: str | None = None) -> dict[str, object]:
    """Returns a refusal as the JSON of a google.rpc.Status, before serialization."""
    return {
        "code": int(refusal.code),
        "message": message or refusal.message or _TEXT,
        "details": [
            {
                "@type": f"{_TYPES}google.rpc.ErrorInfo",
                "reason": refusal.reason,
                "domain": DOMAIN,
            }
        ],
    }


def local_replies(refusals: Iterable[Refusal], *, grpc: bool) -> LocalReplyConfig:
    """Maps Envoy's own error responses. The first matching refusal applies.

    With `grpc`, gRPC clients receive a gRPC status.
    """
    mappers = []
    for refusal in refusals:
        if grpc:
            mappers.append(_grpc_mapper(refusal))
        mappers.append(_rest_mapper(refusal))
    return LocalReplyConfig(mappers=mappers)


def _rest_mapper(refusal: Refusal) -> ResponseMapper:
    mark = [pieces.set_header(MALFORMED_MARK, "1")] if refusal is MALFORMED else []
    return ResponseMapper(
        filter=_when(refusal.when),
        status_code=refusal.http_status,
        body_format_override=SubstitutionFormatString(
            json_format=Struct.from_dict(status_json(refusal))
        ),
        headers_to_add=[pieces.set_header("cache-control", "no-store"), *_NOT_A_PAGE, *mark],
    )


# If a service is unreachable, a transcoded REST request is gRPC at this point;
# x-envoy-original-method identifies it. For a request without headers (one that could not be
# parsed), the expression fails, which counts as false.
_IS_GRPC = (
    "request.headers['content-type'].startsWith('application/grpc')"
    " && !('x-envoy-original-method' in request.headers)"
)


def _grpc_mapper(refusal: Refusal) -> ResponseMapper:
    code = refusal.code if refusal.grpc_code is None else refusal.grpc_code
    message = refusal.message or "The request cannot be read."
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN))
    status = status_pb2.Status(code=int(code), message=message, details=[info])
    details = base64.b64encode(status.SerializeToString()).decode()
    return ResponseMapper(
        filter=_when(f"({refusal.when}) && {_IS_GRPC}"),
        # Becomes grpc-message, which clients compare with the message in the details.
        body=DataSource(inline_string=message),
        headers_to_add=[
            pieces.set_header("grpc-status", str(int(code))),
            pieces.set_header("grpc-status-details-bin", details),
        ],
    )


def _when(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=Any.pack(ExpressionFilter(expression=expression)),
        )
    )
