"""The CDN edge: an Envoy that serves media from S3 to clients with a valid token.

A request is `/media/<key>?token=<JWT>`. The edge validates the token, requires the path to be below
the prefix that the token names, and drops the query so that all viewers share one cached response.
On a cache miss, it fetches the object from the private bucket with a signed request. It serves
images only.
"""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import DataSource, Http1ProtocolOptions
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.common.async_files.v3 import (
    AsyncFileManagerConfig,
    AsyncFileManagerConfigThreadPool,
)
from envoy_data_plane.envoy.extensions.common.aws.v3 import (
    AwsCredentialProvider,
    InlineCredentialProvider,
)
from envoy_data_plane.envoy.extensions.filters.http.aws_request_signing.v3 import (
    AwsRequestSigning,
)
from envoy_data_plane.envoy.extensions.filters.http.cache_v2.v3 import CacheV2Config
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation,
    Mutations,
)
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwtAuthentication,
    JwtCacheConfig,
    JwtProvider,
    JwtRequirement,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.http.cache_v2.file_system_http_cache.v3 import (
    FileSystemHttpCacheV2Config,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct
from google.rpc import code_pb2

from gateway import errors, pieces
from gateway.pieces import SECOND

_JWT = "envoy.filters.http.jwt_authn"
_LUA = "envoy.filters.http.lua"
_CACHE = "envoy.filters.http.cache_v2"
_CLUSTER = "s3"

_EDGE_LUA = Path(__file__).with_name("edge.lua")
_ORIGIN_LUA = Path(__file__).with_name("origin.lua")

_CACHE_BYTES = 2 << 30

# The types that the media pipeline writes. The edge serves nothing else from the bucket. Not
# image/*: an SVG can run scripts.
IMAGE_TYPES = ("image/jpeg", "image/webp", "image/avif")

# The object of a key never changes, so clients need not revalidate it.
_IMMUTABLE = "public, max-age=31536000, immutable"

_OBJECT_UNKNOWN = errors.Refusal(
    when="response.code == 404",
    reason="MEDIA_UNKNOWN",
    code=code_pb2.NOT_FOUND,
    message="The object does not exist.",
)
_OUTSIDE_PREFIX = errors.Refusal(
    when="response.code == 403",
    reason="TOKEN_INVALID",
    code=code_pb2.PERMISSION_DENIED,
    message="The token does not cover this path.",
)
_RANGE_OUTSIDE = errors.Refusal(
    when="response.code == 416",
    reason="REQUEST_MALFORMED",
    code=code_pb2.OUT_OF_RANGE,
    message="The requested range is outside the object.",
)
_ORIGIN_UNAVAILABLE = errors.Refusal(
    when="response.code == 503",
    reason="UNAVAILABLE",
    code=code_pb2.UNAVAILABLE,
    message="The media store is not available now; retry with backoff.",
)

# Envoy's own responses. edge.lua converts those of S3.
_REFUSALS = errors.local_replies(
    (
        *errors.TOKEN_REFUSALS,
        _OUTSIDE_PREFIX,
        errors.ROUTE_UNKNOWN,
        _RANGE_OUTSIDE,
        *errors.COMMON_REFUSALS,
    ),
    grpc=False,
)


@dataclass(frozen=True)
class EdgeSettings:
    """The settings of one edge, including secrets."""

    # Ports on loopback.
    port: int
    admin_port: int
    # S3, and the private bucket of the variants.
    s3_host: str
    s3_port: int
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    # The HS256 secret that tokens are signed with.
    token_secret: bytes = field(repr=False)
    # Where cached responses are stored. Must exist: without it, Envoy starts but caches nothing.
    cache_folder: Path
    # How long a cached response is served before the edge asks S3 whether the object still exists:
    # a deleted object can remain visible for this long. Each requested object costs one bodiless
    # request to S3 in this time.
    fresh_seconds: int = 30


def build(settings: EdgeSettings) -> str:
    """Returns Envoy's configuration as JSON. It contains secrets: keep it private."""
    chain = pieces.connection_manager(
        "edge", routes=_routes(settings), filters=_filters(settings), refusals=_REFUSALS
    )
    return Bootstrap(
        admin=pieces.admin(settings.admin_port),
        overload_manager=pieces.connection_limit(10_000),
        static_resources=BootstrapStaticResources(
            listeners=[pieces.listener("edge", settings.port, chain)],
            clusters=[_s3(settings), _self(settings)],
        ),
    ).to_json(indent=2)


# --- Downstream: viewers -------------------------------------------------------------------------


def _filters(settings: EdgeSettings) -> list[HttpFilter]:
    return [
        pieces.http_filter(_JWT, _token_check(settings.token_secret)),
        pieces.http_filter(_LUA, _prefix_check()),
        pieces.http_filter(_CACHE, _cache(settings.cache_folder)),
        pieces.http_filter("envoy.filters.http.router", Router()),
    ]


def _token_check(secret: bytes) -> JwtAuthentication:
    key = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
    return JwtAuthentication(
        providers={
            "media": JwtProvider(
                require_expiration=True,
                # Tolerates clock drift.
                clock_skew_seconds=5,
                local_jwks=DataSource(
                    inline_string=json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "k": key}]})
                ),
                from_params=["token"],
                # edge.lua reads the token again, and then drops it with the whole query.
                forward=True,
                payload_in_metadata="token",
                jwt_cache_config=JwtCacheConfig(jwt_cache_size=10_000),
            )
        },
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"), requires=JwtRequirement(provider_name="media")
            )
        ],
    )


def _prefix_check() -> Lua:
    # The script rewrites the path for S3; the route must remain that of the original path.
    return Lua(default_source_code=pieces.file(_EDGE_LUA), clear_route_cache=False)


def _cache(folder: Path) -> CacheV2Config:
    return CacheV2Config(
        typed_config=Any.pack(
            FileSystemHttpCacheV2Config(
                manager_config=AsyncFileManagerConfig(
                    thread_pool=AsyncFileManagerConfigThreadPool(thread_count=2)
                ),
                cache_path=str(folder),
                max_cache_size_bytes=_CACHE_BYTES,
            )
        ),
        # A client's reload must not query S3; `fresh_seconds` bounds staleness.
        ignore_request_cache_control_header=True,
    )


def _routes(settings: EdgeSettings) -> RouteConfiguration:
    return RouteConfiguration(
        name="media",
        virtual_hosts=[
            VirtualHost(
                name="media",
                domains=["*"],
                routes=[
                    pieces.health_route(_JWT, _CACHE),
                    Route(
                        name="media",
                        match=RouteMatch(prefix="/media/", headers=[_verbs("GET|HEAD")]),
                        route=RouteAction(cluster=_CLUSTER, timeout=30 * SECOND),
                        typed_per_filter_config={
                            _LUA: Any.pack(LuaPerRoute(filter_context=_context(settings)))
                        },
                    ),
                    # Browsers send this before a page reads an image's bytes with custom headers.
                    Route(
                        name="preflight",
                        match=RouteMatch(prefix="/media/", headers=[_verbs("OPTIONS")]),
                        direct_response=DirectResponseAction(status=204),
                        response_headers_to_add=[
                            pieces.set_header("access-control-allow-origin", "*"),
                            pieces.set_header("access-control-allow-methods", "GET, HEAD"),
                            pieces.set_header("access-control-allow-headers", "range"),
                            pieces.set_header("access-control-max-age", "86400"),
                        ],
                        typed_per_filter_config=pieces.without(_JWT, _CACHE),
                    ),
                    Route(
                        name="unknown path",
                        match=RouteMatch(prefix="/"),
                        direct_response=DirectResponseAction(status=404),
                        typed_per_filter_config=pieces.without(_JWT, _CACHE),
                    ),
                ],
            )
        ],
    )


def _verbs(pattern: str) -> HeaderMatcher:
    return HeaderMatcher(
        name=":method", string_match=StringMatcher(safe_regex=RegexMatcher(regex=pattern))
    )


def _context(settings: EdgeSettings) -> Struct:
    """The settings that edge.lua reads."""
    answers = {404: _OBJECT_UNKNOWN, 416: _RANGE_OUTSIDE, 503: _ORIGIN_UNAVAILABLE}
    context: Struct = Struct.from_dict(
        {
            "authority": f"{settings.s3_host}:{settings.s3_port}",
            "bucket": settings.bucket,
            "cache_control": _IMMUTABLE,
            "types": dict.fromkeys(IMAGE_TYPES, True),
            "answers": {
                str(status): json.dumps(errors.status_json(refusal))
                for status, refusal in answers.items()
            },
        }
    )
    return context


# --- Upstream: S3 --------------------------------------------------------------------------------


def _s3(settings: EdgeSettings) -> Cluster:
    # The cache sends its own requests to S3, bypassing the listener's router. So filters that every
    # request to S3 needs, and those that change responses before they are cached, belong to the
    # cluster.
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http_protocol_options=Http1ProtocolOptions()
        ),
        http_filters=[
            pieces.http_filter("envoy.filters.http.header_mutation", _header_changes()),
            pieces.http_filter(_LUA, _lifetimes(settings.fresh_seconds)),
            pieces.http_filter("envoy.filters.http.aws_request_signing", _signing(settings)),
            pieces.http_filter("envoy.filters.http.upstream_codec", UpstreamCodec()),
        ],
    )
    return Cluster(
        name=_CLUSTER,
        type=pieces.discovery(settings.s3_host),
        connect_timeout=SECOND,
        per_connection_buffer_limit_bytes=1 << 20,
        load_assignment=pieces.endpoints(_CLUSTER, settings.s3_host, settings.s3_port),
        circuit_breakers=pieces.circuit_breakers(),
        typed_extension_protocol_options=pieces.protocol_options(options),
    )


def _self(settings: EdgeSettings) -> Cluster:
    """The edge as its own upstream; see edge.lua."""
    return Cluster(
        name="self",
        type=pieces.discovery(pieces.LOOPBACK),
        connect_timeout=SECOND,
        load_assignment=pieces.endpoints("self", pieces.LOOPBACK, settings.port),
    )


def _lifetimes(fresh_seconds: int) -> Lua:
    types = ", ".join(f'["{name}"] = true' for name in IMAGE_TYPES)
    source = (
        f"local FRESH_SECONDS = {fresh_seconds}\nlocal TYPES = {{ {types} }}\n"
        + _ORIGIN_LUA.read_text()
    )
    return Lua(default_source_code=DataSource(inline_string=source))


def _header_changes() -> HeaderMutation:
    return HeaderMutation(
        mutations=Mutations(
            request_mutations=pieces.remove_headers("cookie", "x-forwarded-", "x-envoy-"),
            # The cache never stores responses with a Vary header; these responses do not vary.
            response_mutations=pieces.remove_headers(
                "vary",
                "x-amz-",
                "seaweed-",
                "x-request-id",
                "set-cookie",
                "content-disposition",
            ),
        )
    )


def _signing(settings: EdgeSettings) -> AwsRequestSigning:
    return AwsRequestSigning(
        service_name="s3",
        region=settings.region,
        use_unsigned_payload=True,
        # Other headers can still change before the request is sent.
        match_included_headers=[StringMatcher(prefix="x-amz-")],
        credential_provider=AwsCredentialProvider(
            inline_credential=InlineCredentialProvider(
                access_key_id=settings.access_key, secret_access_key=settings.secret_key
            )
        ),
    )
