"""Calls to account, media and graph."""

from collections.abc import Sequence

from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1.graph_internal_service_pb2 import BatchCheckVisibilityRequest
from photomesh.graph.v1.graph_internal_service_pb2_grpc import GraphInternalServiceStub
from photomesh.media.v1.media_internal_service_pb2 import BatchGetMediaRequest, StoredMedia
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceStub

from services.chassis.rpc.client import call
from services.domain.account_names import AccountNames


class Peers:
    """Post's client for account, media and graph. Every method may raise Unavailable."""

    def __init__(
        self,
        account: AccountInternalServiceStub,
        media: MediaInternalServiceStub,
        graph: GraphInternalServiceStub,
    ) -> None:
        self.names = AccountNames(account)
        self._media = media
        self._graph = graph

    async def media(self, media_ids: Sequence[int]) -> Sequence[StoredMedia]:
        """Returns the current media; an unknown one has no `media_id`."""
        request = BatchGetMediaRequest(media_ids=media_ids)
        return (await call(self._media.BatchGetMedia, request)).media

    async def is_visible(self, account_id: int, viewer_id: int) -> bool:
        """Reports whether an account shows its posts to a viewer."""
        request = BatchCheckVisibilityRequest(viewer_id=viewer_id, account_ids=[account_id])
        return (await call(self._graph.BatchCheckVisibility, request)).visible[0]
