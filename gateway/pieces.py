"""Pieces of Envoy configuration that the gateway and the edge share."""

from datetime import timedelta
from ipaddress import ip_address

from betterproto2 import Message
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
    SocketAddress,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.overload.v3 import OverloadManager, ResourceMonitor
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

LOOPBACK = "127.0.0.1"
SECOND = timedelta(seconds=1)

# Names in these families are made by the gateway and by Envoy; whoever believes them must know
# that no one outside can write them.
OWN_HEADERS = ("x-photomesh-", "x-envoy-")

# Reading is enough for those who watch; what changes a running Envoy is done by a new one.
_ADMIN_PATHS = ("/ready", "/stats", "/clusters", "/listeners", "/certs", "/server_info", "/memory")


def address(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def admin(port: int) -> Admin:
    """Envoy's own pages, on loopback, reading only."""
    return Admin(
        address=address(LOOPBACK, port),
        allow_paths=[StringMatcher(prefix=path) for path in _ADMIN_PATHS],
    )


def http_filter(name: str, config: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=Any.pack(config))


def extension(name: str, config: Message) -> TypedExtensionConfig:
    return TypedExtensionConfig(name=name, typed_config=Any.pack(config))


def file(path: object) -> DataSource:
    return DataSource(filename=str(path))


def set_header(name: str, value: str) -> HeaderValueOption:
    """Sets a header, whatever it was before."""
    return HeaderValueOption(
        header=HeaderValue(key=name, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def remove_headers(*prefixes: str) -> list[HeaderMutation]:
    """Removes every header whose name begins with one of the prefixes."""
    return [
        HeaderMutation(
            remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix))
        )
        for prefix in prefixes
    ]


def strip_own_headers() -> TypedExtensionConfig:
    """Removes what only we may say, before anything reads the request."""
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        EarlyHeaderMutation(mutations=remove_headers(*OWN_HEADERS)),
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
    """How the endpoints are found: an address is itself, a name is all its addresses."""
    try:
        ip_address(host)
    except ValueError:
        return ClusterDiscoveryType.STRICT_DNS
    return ClusterDiscoveryType.STATIC


def circuit_breakers() -> CircuitBreakers:
    """Bounds what may wait for one upstream, and what retries may add to its load."""
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


def connection_limit(most: int) -> OverloadManager:
    """Refuses connections past a number that the process has memory and descriptors for."""
    return OverloadManager(
        resource_monitors=[
            ResourceMonitor(
                name="envoy.resource_monitors.global_downstream_max_connections",
                typed_config=Any.pack(
                    DownstreamConnectionsConfig(max_active_downstream_connections=most)
                ),
            )
        ]
    )
