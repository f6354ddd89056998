"""Building blocks of Envoy configurations, shared by the gateway and the edge."""

from datetime import timedelta
from ipaddress import ip_address

from betterproto2 import Message
from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.bootstrap.v3 import Admin
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    CircuitBreakersThresholdsRetryBudget,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http2ProtocolOptions,
    SocketAddress,
    SubstitutionFormatString,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptions as CommonHttpOptions
from envoy_data_plane.envoy.config.core.v3 import (
    HttpProtocolOptionsHeadersWithUnderscoresAction as HeadersWithUnderscores,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    FilterConfig,
    Route,
    RouteConfiguration,
    RouteMatch,
)
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StdoutAccessLog
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    LocalReplyConfig,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManagerPathWithEscapedSlashesAction as EscapedSlashes,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct

LOOPBACK = "127.0.0.1"
SECOND = timedelta(seconds=1)

USER_HEADER = "x-photomesh-user-id"

# Prefixes of headers that only the gateway and Envoy set. Services trust them, so the listener
# removes them from incoming requests.
INTERNAL_PREFIXES = ("x-photomesh-", "x-envoy-")

# Read-only paths, for monitoring. To change a running Envoy, start a new one.
_ADMIN_PATHS = ("/ready", "/stats", "/clusters", "/listeners", "/certs", "/server_info", "/memory")


def address(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def admin(port: int) -> Admin:
    """Returns Envoy's admin interface, on loopback, read-only."""
    return Admin(
        address=address(LOOPBACK, port),
        allow_paths=[StringMatcher(prefix=path) for path in _ADMIN_PATHS],
    )


def http_filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=Any.pack(config))


def file(path: object) -> DataSource:
    return DataSource(filename=str(path))


def without(*filters: str) -> dict[str, Any]:
    """Returns a route configuration that disables filters."""
    return {name: Any.pack(FilterConfig(disabled=True)) for name in filters}


def health_route(*filters: str) -> Route:
    """Reports that Envoy is serving, bypassing the filters."""
    return Route(
        name="health",
        match=RouteMatch(path="/healthz"),
        direct_response=DirectResponseAction(
            status=200, body=DataSource(inline_string='{"status":"SERVING"}\n')
        ),
        response_headers_to_add=[set_header("content-type", "application/json")],
        typed_per_filter_config=without(*filters),
    )


def protocol_options(options: HttpProtocolOptions) -> dict[str, Any]:
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Any.pack(options)}


def listener(
    name: str, port: int, chain: HttpConnectionManager, tls: TransportSocket | None = None
) -> Listener:
    """Returns a listener on loopback."""
    return Listener(
        name=name,
        address=address(LOOPBACK, port),
        # With SO_REUSEPORT, a second Envoy on the same port would take half of the connections
        # instead of failing.
        enable_reuse_port=False,
        per_connection_buffer_limit_bytes=1 << 20,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=Any.pack(chain),
                    )
                ],
                transport_socket=tls,
            )
        ],
    )


def connection_manager(
    name: str,
    *,
    routes: RouteConfiguration,
    filters: list[HttpFilter],
    refusals: LocalReplyConfig,
    request_timeout: timedelta = 30 * SECOND,
    max_stream_duration: timedelta | None = None,
) -> HttpConnectionManager:
    """Returns a connection manager that limits and normalizes incoming requests.

    A complete request must arrive within `request_timeout`; zero: the route sets the limit.
    `max_stream_duration` limits request and response together unless the route sets a limit.
    """
    return HttpConnectionManager(
        stat_prefix=name,
        server_name="photomesh",
        route_config=routes,
        http_filters=filters,
        local_reply_config=refusals,
        access_log=[_access_log()],
        early_header_mutation_extensions=[_strip_internal_headers()],
        use_remote_address=True,
        generate_request_id=True,
        always_set_request_id_in_response=True,
        # The checked path must equal the path that services interpret.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=EscapedSlashes.REJECT_REQUEST,
        max_request_headers_kb=32,
        request_headers_timeout=10 * SECOND,
        request_timeout=request_timeout,
        stream_idle_timeout=60 * SECOND,
        common_http_protocol_options=CommonHttpOptions(
            idle_timeout=300 * SECOND,
            max_stream_duration=max_stream_duration,
            max_headers_count=100,
            # Upstreams must not mistake x_photomesh_user_id for x-photomesh-user-id.
            headers_with_underscores_action=HeadersWithUnderscores.REJECT_REQUEST,
        ),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=128,
            initial_stream_window_size=256 << 10,
            initial_connection_window_size=1 << 20,
            # An error in one call must not close the connection's other calls.
            override_stream_error_on_invalid_http_message=True,
        ),
    )


def set_header(name: str, value: str) -> HeaderValueOption:
    """Sets a header, replacing any existing value."""
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def remove_headers(*prefixes: str) -> list[HeaderMutation]:
    """Removes every header whose name starts with one of the prefixes."""
    return [
        HeaderMutation(
            remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix))
        )
        for prefix in prefixes
    ]


def _strip_internal_headers() -> TypedExtensionConfig:
    """Removes internal headers before any filter reads the request."""
    return TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=Any.pack(EarlyHeaderMutation(mutations=remove_headers(*INTERNAL_PREFIXES))),
    )


def endpoints(cluster: str, host: str, port: int) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(
        cluster_name=cluster,
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=address(host, port)))]
            )
        ],
    )


def discovery(host: str) -> ClusterDiscoveryType:
    """Returns how Envoy finds the endpoints: an IP address is static, a name is resolved by DNS."""
    try:
        ip_address(host)
    except ValueError:
        return ClusterDiscoveryType.STRICT_DNS
    return ClusterDiscoveryType.STATIC


def circuit_breakers() -> CircuitBreakers:
    """Limits the load and the retries for one upstream."""
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=1_024,
                max_pending_requests=1_024,
                max_requests=4_096,
                retry_budget=CircuitBreakersThresholdsRetryBudget(
                    budget_percent=Percent(value=20.0), min_retry_concurrency=3
                ),
            )
        ]
    )


def connection_limit(max_connections: int) -> OverloadManager:
    """Limits connections to what the process has memory and file descriptors for."""
    return OverloadManager(
        resource_monitors=[
            ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=Any.pack(
                    DownstreamConnectionsConfig(max_active_downstream_connections=max_connections)
                ),
            )
        ]
    )


def _access_log() -> AccessLog:
    # Paths exclude the query, which contains search terms and the edge's tokens. Values from
    # clients are truncated to the length of the longest legitimate value.
    fields = {
        "time": "%START_TIME%",
        "verb": "%REQ(x-envoy-original-method?:method):8%",
        "path": "%PATH(NQ:ORIG_OR_PATH):100%",
        "method": "%PATH(NQ:PATH):100%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "milliseconds": "%DURATION%",
        "bytes_sent": "%BYTES_SENT%",
        "user_id": f"%REQ({USER_HEADER}):20%",
        "request_id": "%REQ(x-request-id):36%",
        "traceparent": "%REQ(traceparent):55%",
        "peer": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "upstream": "%UPSTREAM_HOST%",
    }
    return AccessLog(
        name="envoy.access_loggers.stdout",
        typed_config=Any.pack(
            StdoutAccessLog(
                log_format=SubstitutionFormatString(
                    json_format=Struct.from_dict(fields), omit_empty_values=True
                )
            )
        ),
    )
