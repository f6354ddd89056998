"""The API gateway: one Envoy in front of every public method, as REST and as gRPC.

Envoy processes a request as follows: it removes internal headers, answers CORS preflights, converts
gRPC-Web to gRPC, validates the access token and sets `x-photomesh-user-id` from it, transcodes REST
to gRPC, and routes the request to the service over mutual TLS. REST requests for pages of feeds are
forwarded without transcoding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap, BootstrapStaticResources
from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    OutlierDetection,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    HealthCheckHttpHealthCheck,
    Http2ProtocolOptions,
    KeepaliveSettings,
    TcpKeepalive,
    TransportSocket,
)
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    RetryPolicy,
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.config.route.v3 import (
    RouteActionClusterNotFoundResponseCode as ClusterNotFound,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors, CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.grpc_json_transcoder.v3 import (
    GrpcJsonTranscoder,
    GrpcJsonTranscoderPrintOptions,
    GrpcJsonTranscoderRequestValidationOptions,
)
from envoy_data_plane.envoy.extensions.filters.http.grpc_web.v3 import GrpcWeb
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn.v3 import (
    JwtAuthentication,
    JwtCacheConfig,
    JwtClaimToHeader,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    RequirementRule,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any, Struct

from gateway import errors, pieces
from gateway.contracts import PublicMethod, public_methods, public_services
from gateway.pieces import SECOND

TOKEN_ISSUER = "photomesh"  # noqa: S105  (a name, not a secret)
TOKEN_AUDIENCE = "photomesh-api"  # noqa: S105  (a name, not a secret)

# The deadline of a call, counted from the complete request, including retries. Services receive it
# in x-envoy-expected-rq-timeout-ms. Streams have no deadline.
CALL_TIMEOUT = 15 * SECOND

# How long a request can take to arrive. Streams have no limit, but end after a minute of silence.
ARRIVAL_TIMEOUT = 10 * SECOND

_UNLIMITED = timedelta(0)

# The largest JSON body to read and to write. The largest legitimate request, a post whose caption
# is 2,200 escaped characters, takes 27 KB. File uploads are streams and not subject to this limit:
# the service counts their bytes.
_REQUEST_BODY_BYTES = 64 << 10
_RESPONSE_BODY_BYTES = 8 << 20

_REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_REFLECTION_CLUSTER = "reflection"

# The query string of a valid page request: only a page size and a page token.
_PLAIN_QUERY = r"(\?((page(_s|S)ize=[0-9]{1,3}|page(_t|T)oken=([0-9A-Za-z_=-]|%3D)*)&?)*)?"

_STRICT_LUA = Path(__file__).with_name("strict.lua")

_REFUSALS = errors.local_replies(
    (*errors.TOKEN_REFUSALS, errors.ROUTE_UNKNOWN, *errors.COMMON_REFUSALS), grpc=True
)

_CORS = "envoy.filters.http.cors"
_STRICT_JSON = "envoy.filters.http.lua"
_GRPC_WEB = "envoy.filters.http.grpc_web"
_JWT = "envoy.filters.http.jwt_authn"
_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
_ROUTER = "envoy.filters.http.router"


@dataclass(frozen=True)
class Peer:
    """The address of a process of the mesh, and the identity that its certificate must prove."""

    host: str
    port: int
    identity: str


@dataclass(frozen=True)
class GatewaySettings:
    """The settings of one gateway."""

    # Ports on loopback: plain HTTP/1.1 and h2c, TLS, and Envoy's admin interface.
    http_port: int
    https_port: int
    admin_port: int
    # The FileDescriptorSet of all contracts, google/rpc/error_details.proto included.
    descriptors: Path
    # The keys that access tokens are signed with, as a JSON Web Key Set.
    jwks: Path
    # The certificate of the public TLS listener.
    public_certificate: Path
    public_key: Path
    # The folder of the identity `gateway`: ca.pem, cert.pem, key.pem.
    identity: Path
    # Full name of each public proto service -> the process that serves it.
    services: Mapping[str, Peer]
    reflection: Peer
    # gRPC path of each paged method whose service also serves it over REST -> that process; see
    # services/chassis/rpc/rest.py.
    pages: Mapping[str, Peer]
    # Origins whose web pages can call the API, such as "https://photomesh.example".
    cors_origins: tuple[str, ...] = ()


def build(settings: GatewaySettings) -> str:
    """Returns Envoy's configuration as JSON.

    Raises ValueError if `settings.services` does not name exactly the public proto services of the
    descriptor set.
    """
    methods = public_methods(settings.descriptors)
    _check_services(settings, public_services(methods))
    peers = {peer.identity: peer for peer in settings.services.values()}
    chain = pieces.connection_manager(
        "gateway",
        routes=_routes(settings, methods),
        filters=_filters(settings, methods),
        refusals=_REFUSALS,
        request_timeout=timedelta(0),
        max_stream_duration=ARRIVAL_TIMEOUT + CALL_TIMEOUT,
    )
    return Bootstrap(
        admin=pieces.admin(settings.admin_port),
        overload_manager=pieces.connection_limit(10_000),
        static_resources=BootstrapStaticResources(
            listeners=[
                pieces.listener("http", settings.http_port, chain),
                pieces.listener("https", settings.https_port, chain, _public_tls(settings)),
            ],
            clusters=[
                *(_cluster(name, peer, settings.identity) for name, peer in peers.items()),
                _cluster(_REFLECTION_CLUSTER, settings.reflection, settings.identity),
                *(
                    _rest_cluster(path, peer, settings.identity)
                    for path, peer in settings.pages.items()
                ),
            ],
        ),
    ).to_json(indent=2)


def _check_services(settings: GatewaySettings, public: tuple[str, ...]) -> None:
    if difference := settings.services.keys() ^ set(public):
        raise ValueError(
            "the gateway's services and the public services of the contracts differ in "
            + ", ".join(sorted(difference))
        )


# --- Filters -------------------------------------------------------------------------------------


def _filters(settings: GatewaySettings, methods: tuple[PublicMethod, ...]) -> list[HttpFilter]:
    return [
        pieces.http_filter(_CORS, Cors()),
        pieces.http_filter(_GRPC_WEB, GrpcWeb()),
        pieces.http_filter(_JWT, _token_check(settings)),
        pieces.http_filter(_STRICT_JSON, Lua(default_source_code=pieces.file(_STRICT_LUA))),
        pieces.http_filter(_TRANSCODER, _transcoder(settings, methods)),
        pieces.http_filter(_ROUTER, Router()),
    ]


def _token_check(settings: GatewaySettings) -> JwtAuthentication:
    return JwtAuthentication(
        providers={
            "access": JwtProvider(
                issuer=TOKEN_ISSUER,
                audiences=[TOKEN_AUDIENCE],
                require_expiration=True,
                # Tolerates clock drift.
                clock_skew_seconds=5,
                local_jwks=pieces.file(settings.jwks),
                # Explicit, because by default Envoy also accepts a token in the query, which logs
                # and browser histories keep.
                from_headers=[JwtHeader(name="Authorization", value_prefix="Bearer ")],
                claim_to_headers=[
                    JwtClaimToHeader(claim_name="sub", header_name=pieces.USER_HEADER)
                ],
                jwt_cache_config=JwtCacheConfig(jwt_cache_size=10_000),
            )
        },
        # Applies to every request, even without a route. Routes of methods without a token disable
        # it.
        rules=[
            RequirementRule(
                match=RouteMatch(prefix="/"), requires=JwtRequirement(provider_name="access")
            )
        ],
        bypass_cors_preflight=True,
    )


def _transcoder(settings: GatewaySettings, methods: tuple[PublicMethod, ...]) -> GrpcJsonTranscoder:
    return GrpcJsonTranscoder(
        proto_descriptor=str(settings.descriptors),
        services=list(public_services(methods)),
        convert_grpc_status=True,
        print_options=GrpcJsonTranscoderPrintOptions(
            always_print_primitive_fields=True, stream_sse_style_delimited=True
        ),
        # Without all three, requests that cannot be transcoded are forwarded unchanged and fail
        # with 503.
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(
            reject_unknown_method=True,
            reject_unknown_query_parameters=True,
            reject_binding_body_field_collisions=True,
        ),
        max_request_body_size=_REQUEST_BODY_BYTES,
        max_response_body_size=_RESPONSE_BODY_BYTES,
    )


# --- Routes --------------------------------------------------------------------------------------


def _routes(settings: GatewaySettings, methods: tuple[PublicMethod, ...]) -> RouteConfiguration:
    return RouteConfiguration(
        name="public",
        virtual_hosts=[
            VirtualHost(
                name="public",
                domains=["*"],
                routes=[
                    pieces.health_route(_JWT, _TRANSCODER),
                    *(_page_route(method) for method in methods if method.path in settings.pages),
                    *(_rest_route(method) for method in methods if method.http_path),
                    *(_grpc_route(settings, method) for method in methods),
                    *(_reflection_route(service) for service in _REFLECTION),
                    _unknown_path(),
                ],
                typed_per_filter_config={_CORS: Any.pack(_cors(settings.cors_origins))},
            )
        ],
        # The gateway has validated the token and must not forward it. No service reads cookies.
        request_headers_to_remove=["authorization", "cookie"],
    )


def _rest_route(method: PublicMethod) -> Route:
    """Configures the token check and body validation of a REST request.

    The request does not reach this route's cluster: the transcoder converts the request to gRPC,
    which selects a new route, or rejects it.
    """
    known = Struct.from_dict({"message": method.body, "takes_file": method.takes_file})
    strict = LuaPerRoute(filter_context=known)
    verb = HeaderMatcher(name=":method", string_match=StringMatcher(exact=method.http_verb))
    path = RegexMatcher(regex=method.http_pattern)
    return Route(
        name=f"rest {method.path}",
        match=RouteMatch(safe_regex=path, headers=[verb]),
        route=_not_found(arrival=_UNLIMITED if method.streams else ARRIVAL_TIMEOUT),
        # Limits what strict.lua reads; the transcoder has its own limit.
        request_body_buffer_limit=None if method.takes_file else _REQUEST_BODY_BYTES,
        typed_per_filter_config=_token_option(method) | {_STRICT_JSON: Any.pack(strict)},
    )


def _page_route(method: PublicMethod) -> Route:
    """Forwards valid page requests to the service that serves them over REST.

    Any other request takes the transcoder's route, which reports what is wrong.
    """
    verb = HeaderMatcher(name=":method", string_match=StringMatcher(exact="GET"))
    plain = RegexMatcher(regex=method.http_pattern + _PLAIN_QUERY)
    whole = HeaderMatcher(name=":path", string_match=StringMatcher(safe_regex=plain))
    return Route(
        name=f"page {method.path}",
        match=RouteMatch(path=method.http_path, headers=[verb, whole]),
        route=RouteAction(
            cluster=_pages_of(method.path),
            timeout=CALL_TIMEOUT,
            # Retries a request that a process rejects while it starts or drains.
            retry_policy=RetryPolicy(
                retry_on="connect-failure,reset,retriable-status-codes",
                retriable_status_codes=[503],
                num_retries=2,
            ),
        ),
        typed_per_filter_config=_token_option(method) | pieces.without(_STRICT_JSON, _TRANSCODER),
    )


def _grpc_route(settings: GatewaySettings, method: PublicMethod) -> Route:
    action = RouteAction(
        cluster=settings.services[method.service].identity, retry_policy=_retries(method)
    )
    if method.streams:
        action.max_stream_duration = _within(_UNLIMITED)
    else:
        # Not both: with max_stream_duration, Envoy ignores `timeout` and sends no deadline to
        # services.
        action.timeout = CALL_TIMEOUT
    return Route(
        name=method.path,
        match=RouteMatch(path=method.path),
        route=action,
        typed_per_filter_config=_token_option(method),
    )


def _retries(method: PublicMethod) -> RetryPolicy:
    # A call that never reached its service is always safe to retry. A call without side effects is
    # also safe to retry if the service fails during the call.
    retry_on = "connect-failure,refused-stream"
    if method.reads:
        retry_on += ",reset,unavailable"
    return RetryPolicy(retry_on=retry_on, num_retries=2)


def _reflection_route(service: str) -> Route:
    return Route(
        name=service,
        match=RouteMatch(prefix=f"/{service}/"),
        # The stream stays open as long as the caller wants.
        route=RouteAction(cluster=_REFLECTION_CLUSTER, max_stream_duration=_within(_UNLIMITED)),
        typed_per_filter_config=pieces.without(_JWT),
    )


def _unknown_path() -> Route:
    """Rejects other paths, without the transcoder, so that none of them can reach a method."""
    return Route(
        name="unknown path",
        match=RouteMatch(prefix="/"),
        route=_not_found(),
        typed_per_filter_config=pieces.without(_JWT, _TRANSCODER),
    )


def _within(duration: timedelta) -> RouteActionMaxStreamDuration:
    return RouteActionMaxStreamDuration(max_stream_duration=duration)


def _not_found(*, arrival: timedelta = ARRIVAL_TIMEOUT) -> RouteAction:
    """Returns 404 by naming a cluster in a header that clients cannot send.

    A direct response would be simpler, but the CORS filter does not process those.
    """
    return RouteAction(
        max_stream_duration=_within(arrival),
        cluster_header=f"{pieces.INTERNAL_PREFIXES[0]}nowhere",
        cluster_not_found_response_code=ClusterNotFound.NOT_FOUND,
    )


def _token_option(method: PublicMethod) -> dict[str, Any]:
    return pieces.without(_JWT) if method.without_token else {}


def _cors(origins: Iterable[str]) -> CorsPolicy:
    return CorsPolicy(
        allow_origin_string_match=[StringMatcher(exact=origin) for origin in origins],
        allow_methods="GET, POST, PUT, PATCH, DELETE",
        allow_headers=(
            "authorization, content-type, grpc-timeout, traceparent, x-grpc-web, x-user-agent"
        ),
        expose_headers="grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
        max_age="7200",
    )


# --- Upstream: services --------------------------------------------------------------------------


def _cluster(name: str, peer: Peer, identity: Path) -> Cluster:
    return _upstream(
        name,
        peer,
        identity,
        protocol="h2",
        options=_http2(),
        health=_health(grpc=HealthCheckGrpcHealthCheck(authority=peer.identity)),
    )


def _rest_cluster(method: str, peer: Peer, identity: Path) -> Cluster:
    return _upstream(
        _pages_of(method),
        peer,
        identity,
        protocol="http/1.1",
        options={},
        health=_health(http=HealthCheckHttpHealthCheck(host=peer.identity, path="/healthz")),
    )


def _pages_of(method: str) -> str:
    """Returns the name of the cluster that serves a method's pages over REST."""
    return f"pages of {method}"


def _health(
    *,
    grpc: HealthCheckGrpcHealthCheck | None = None,
    http: HealthCheckHttpHealthCheck | None = None,
) -> HealthCheck:
    """Excludes unavailable instances of a service.

    If a service has a single instance, Envoy uses it even when unhealthy, so that requests after a
    restart need not wait for a health check.
    """
    return HealthCheck(
        timeout=SECOND,
        interval=5 * SECOND,
        # The default is one minute, in which an idle service would stay unhealthy.
        no_traffic_interval=5 * SECOND,
        unhealthy_threshold=2,
        healthy_threshold=1,
        grpc_health_check=grpc,
        http_health_check=http,
    )


def _upstream(
    name: str,
    peer: Peer,
    identity: Path,
    *,
    protocol: str,
    options: dict[str, Any],
    health: HealthCheck,
) -> Cluster:
    return Cluster(
        name=name,
        type=pieces.discovery(peer.host),
        connect_timeout=SECOND,
        per_connection_buffer_limit_bytes=1 << 20,
        load_assignment=pieces.endpoints(name, peer.host, peer.port),
        circuit_breakers=pieces.circuit_breakers(),
        health_checks=[health],
        outlier_detection=OutlierDetection(
            split_external_local_origin_errors=True,
            consecutive_local_origin_failure=5,
            consecutive_gateway_failure=10,
            base_ejection_time=5 * SECOND,
            max_ejection_time=30 * SECOND,
        ),
        transport_socket=_mesh_tls(peer.identity, identity, protocol),
        typed_extension_protocol_options=options,
        upstream_connection_options=UpstreamConnectionOptions(
            tcp_keepalive=TcpKeepalive(keepalive_time=30, keepalive_interval=5, keepalive_probes=3)
        ),
    )


def _http2() -> dict[str, Any]:
    options = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
            http2_protocol_options=Http2ProtocolOptions(
                # Pings only before a call on a connection that was idle: gRPC servers close
                # connections that send pings without calls.
                connection_keepalive=KeepaliveSettings(
                    connection_idle_interval=30 * SECOND, timeout=2 * SECOND
                ),
                initial_stream_window_size=1 << 20,
                initial_connection_window_size=16 << 20,
            )
        )
    )
    return pieces.protocol_options(options)


def _mesh_tls(peer: str, identity: Path, protocol: str) -> TransportSocket:
    return _tls(
        UpstreamTlsContext(
            sni=peer,
            common_tls_context=CommonTlsContext(
                tls_params=TlsParameters(
                    tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
                    tls_maximum_protocol_version=TlsParametersTlsProtocol.TLSv1_3,
                ),
                alpn_protocols=[protocol],
                tls_certificates=[_certificate(identity / "cert.pem", identity / "key.pem")],
                validation_context=CertificateValidationContext(
                    trusted_ca=pieces.file(identity / "ca.pem"),
                    match_typed_subject_alt_names=[
                        SubjectAltNameMatcher(
                            san_type=SubjectAltNameMatcherSanType.DNS,
                            matcher=StringMatcher(exact=peer),
                        )
                    ],
                ),
            ),
        )
    )


def _public_tls(settings: GatewaySettings) -> TransportSocket:
    return _tls(
        DownstreamTlsContext(
            common_tls_context=CommonTlsContext(
                tls_params=TlsParameters(
                    tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2
                ),
                alpn_protocols=["h2", "http/1.1"],
                tls_certificates=[_certificate(settings.public_certificate, settings.public_key)],
            )
        )
    )


def _tls(context: Message) -> TransportSocket:
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _certificate(chain: Path, key: Path) -> TlsCertificate:
    return TlsCertificate(certificate_chain=pieces.file(chain), private_key=pieces.file(key))
