"""The graph service's public methods, in the order of the contract."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from photomesh.account.v1.account_internal_service_pb2 import BatchGetAccountsRequest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.graph.v1 import graph_service_pb2 as pb
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceServicer

from services.chassis.context import signed_in
from services.chassis.errors import Unavailable
from services.chassis.rpc import client
from services.chassis.rpc.paging import PageTokens
from services.chassis.telemetry import logs
from services.domain.account_names import AccountNames
from services.domain.errors import AccountUnknown
from services.domain.timelines import HomeTimelines
from services.graph.audiences import Audiences
from services.graph.errors import AccountPrivate, OwnAccount
from services.graph.lists import Kind, Lists, Position
from services.graph.store import FollowState, GraphStore, Loss, Relation

_DEFAULT_PAGE_SIZE = 50


_HIDE_WITHIN_SECONDS = 0.3

Context = grpc.aio.ServicerContext[Any, Any]

_log = logs.logger(__name__)


@dataclass(frozen=True)
class _Page:
    """One page of a list."""

    accounts: Sequence[pb.ListedAccount]
    next_page_token: str


class GraphService(GraphServiceServicer):
    """The follow graph: the public methods."""

    def __init__(
        self,
        store: GraphStore,
        lists: Lists,
        audiences: Audiences,
        timelines: HomeTimelines,
        accounts: AccountInternalServiceStub,
        page_key: bytes,
    ) -> None:
        self._store = store
        self._lists = lists
        self._audiences = audiences
        self._timelines = timelines
        self._accounts = accounts
        self._names = AccountNames(accounts)
        self._page_key = page_key

    # -- Follows and requests ------------------------------------------------------------------

    async def Follow(self, request: pb.FollowRequest, context: Context) -> pb.FollowResponse:
        follower_id = await self._caller_towards(request.account_id)
        state = await self._store.follow(follower_id, request.account_id)
        if state is FollowState.REQUESTED:
            return pb.FollowResponse(state=pb.FollowState.FOLLOW_STATE_REQUESTED)
        await self._settle(request.account_id)
        return pb.FollowResponse(state=pb.FollowState.FOLLOW_STATE_FOLLOWING)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Context) -> pb.UnfollowResponse:
        losses = await self._store.unfollow(signed_in(), request.account_id)
        await self._hide(losses)
        await self._settle(request.account_id)
        return pb.UnfollowResponse()

    async def AcceptFollow(
        self, request: pb.AcceptFollowRequest, context: Context
    ) -> pb.AcceptFollowResponse:
        account_id = signed_in()
        await self._store.accept(account_id, request.account_id)
        await self._settle(account_id)
        return pb.AcceptFollowResponse()

    async def DeclineFollow(
        self, request: pb.DeclineFollowRequest, context: Context
    ) -> pb.DeclineFollowResponse:
        await self._store.decline(signed_in(), request.account_id)
        return pb.DeclineFollowResponse()

    async def RemoveFollower(
        self, request: pb.RemoveFollowerRequest, context: Context
    ) -> pb.RemoveFollowerResponse:
        account_id = signed_in()
        losses = await self._store.remove_follower(account_id, request.account_id)
        await self._hide(losses)
        await self._settle(account_id)
        return pb.RemoveFollowerResponse()

    # -- Blocks, mutes, privacy ----------------------------------------------------------------

    async def Block(self, request: pb.BlockRequest, context: Context) -> pb.BlockResponse:
        blocker_id = await self._caller_towards(request.account_id)
        losses = await self._store.block(blocker_id, request.account_id)
        await self._hide(losses)
        for loss in losses:
            await self._settle(loss.author_id)
        return pb.BlockResponse()

    async def Unblock(self, request: pb.UnblockRequest, context: Context) -> pb.UnblockResponse:
        await self._store.unblock(signed_in(), request.account_id)
        return pb.UnblockResponse()

    async def Mute(self, request: pb.MuteRequest, context: Context) -> pb.MuteResponse:
        muter_id = await self._caller_towards(request.account_id)
        losses = await self._store.mute(muter_id, request.account_id)
        await self._hide(losses)
        return pb.MuteResponse()

    async def Unmute(self, request: pb.UnmuteRequest, context: Context) -> pb.UnmuteResponse:
        await self._store.unmute(signed_in(), request.account_id)
        return pb.UnmuteResponse()

    async def GetPrivacy(
        self, request: pb.GetPrivacyRequest, context: Context
    ) -> pb.GetPrivacyResponse:
        return pb.GetPrivacyResponse(private=await self._store.is_private(signed_in()))

    async def SetPrivacy(
        self, request: pb.SetPrivacyRequest, context: Context
    ) -> pb.SetPrivacyResponse:
        await self._store.set_private(signed_in(), request.private)
        return pb.SetPrivacyResponse()

    # -- Relationships and counts --------------------------------------------------------------

    async def BatchGetRelationships(
        self, request: pb.BatchGetRelationshipsRequest, context: Context
    ) -> pb.BatchGetRelationshipsResponse:
        relations = await self._store.relations(signed_in(), request.account_ids)
        return pb.BatchGetRelationshipsResponse(
            relationships=[_relationship(relation) for relation in relations]
        )

    async def GetFollowCounts(
        self, request: pb.GetFollowCountsRequest, context: Context
    ) -> pb.GetFollowCountsResponse:
        caller_id = signed_in()
        if request.account_id != caller_id:
            [relation] = await self._store.relations(caller_id, [request.account_id])
            if relation.blocked:
                raise AccountUnknown(request.account_id)
            await self._check_account(request.account_id)
        audience = await self._audiences.audience(request.account_id)
        return pb.GetFollowCountsResponse(
            followers=audience.followers,
            followees=await self._store.count_followees(request.account_id),
        )

    # -- Lists ---------------------------------------------------------------------------------

    async def ListFollowers(
        self, request: pb.ListFollowersRequest, context: Context
    ) -> pb.ListFollowersResponse:
        await self._check_may_list(request.account_id)
        page = await self._page(Kind.FOLLOWERS, request.account_id, request)
        return pb.ListFollowersResponse(
            followers=page.accounts, next_page_token=page.next_page_token
        )

    async def ListFollowing(
        self, request: pb.ListFollowingRequest, context: Context
    ) -> pb.ListFollowingResponse:
        await self._check_may_list(request.account_id)
        page = await self._page(Kind.FOLLOWEES, request.account_id, request)
        return pb.ListFollowingResponse(
            followees=page.accounts, next_page_token=page.next_page_token
        )

    async def ListReceivedRequests(
        self, request: pb.ListReceivedRequestsRequest, context: Context
    ) -> pb.ListReceivedRequestsResponse:
        page = await self._page(Kind.RECEIVED_REQUESTS, signed_in(), request)
        return pb.ListReceivedRequestsResponse(
            requesters=page.accounts, next_page_token=page.next_page_token
        )

    async def ListSentRequests(
        self, request: pb.ListSentRequestsRequest, context: Context
    ) -> pb.ListSentRequestsResponse:
        page = await self._page(Kind.SENT_REQUESTS, signed_in(), request)
        return pb.ListSentRequestsResponse(
            requested=page.accounts, next_page_token=page.next_page_token
        )

    async def ListBlocks(
        self, request: pb.ListBlocksRequest, context: Context
    ) -> pb.ListBlocksResponse:
        page = await self._page(Kind.BLOCKS, signed_in(), request)
        return pb.ListBlocksResponse(blocked=page.accounts, next_page_token=page.next_page_token)

    async def ListMutes(
        self, request: pb.ListMutesRequest, context: Context
    ) -> pb.ListMutesResponse:
        page = await self._page(Kind.MUTES, signed_in(), request)
        return pb.ListMutesResponse(muted=page.accounts, next_page_token=page.next_page_token)

    async def _check_may_list(self, account_id: int) -> None:
        """Checks that the caller may see an account's followers and followees.

        Raises:
            AccountUnknown: there is no such account, or one blocks the other.
            AccountPrivate: it is private, and the caller does not follow it.
        """
        caller_id = signed_in()
        if account_id == caller_id:
            return
        [relation] = await self._store.relations(caller_id, [account_id])
        if relation.blocked:
            raise AccountUnknown(account_id)
        await self._check_account(account_id)
        if not relation.sees:
            raise AccountPrivate(account_id)

    async def _page(self, kind: Kind, owner_id: int, request: Any) -> _Page:
        """Returns a page of a list; `request` has `page_size` and `page_token`."""
        viewer_id = signed_in()
        # A token is valid only for the list that it was made for.
        tokens = PageTokens(self._page_key, f"graph.{kind.name}.{owner_id}")
        before = None
        if request.page_token:
            before = Position(*tokens.open_time(request.page_token, viewer_id))
        size = request.page_size or _DEFAULT_PAGE_SIZE
        # One row past the page shows whether there is a next one.
        rows = await self._lists.page(kind, owner_id, viewer_id, before=before, limit=size + 1)
        page = rows[:size]
        token = ""
        if len(rows) > size:
            token = tokens.seal_time(page[-1].create_time, page[-1].account_id, viewer_id)
        return _Page(await self._listed(page), token)

    async def _listed(self, page: Sequence[Position]) -> list[pb.ListedAccount]:
        """Returns the accounts of a page with their names; omits deleted ones."""
        summaries = await self._names.of([position.account_id for position in page])
        listed = []
        for position, summary in zip(page, summaries, strict=True):
            if summary.account_id:
                create_time = Timestamp()
                create_time.FromDatetime(position.create_time)
                listed.append(pb.ListedAccount(account=summary, create_time=create_time))
        return listed

    # -- Shared by several methods -------------------------------------------------------------

    async def _caller_towards(self, account_id: int) -> int:
        """Returns the caller, after checking the account that the call concerns.

        Raises:
            OwnAccount: it is the caller's own.
            AccountUnknown: there is no such account.
        """
        caller_id = signed_in()
        if account_id == caller_id:
            raise OwnAccount
        await self._check_account(account_id)
        return caller_id

    async def _check_account(self, account_id: int) -> None:
        answer = await client.call(
            self._accounts.BatchGetAccounts, BatchGetAccountsRequest(account_ids=[account_id])
        )
        if not answer.accounts[0].account_id:
            raise AccountUnknown(account_id)

    async def _hide(self, losses: Sequence[Loss]) -> None:
        """Hides lost authors in the readers' timelines before the call returns.

        If the cache is unavailable, that is harmless: the event hides them a little later in any
        case.
        """
        try:
            async with asyncio.timeout(_HIDE_WITHIN_SECONDS):
                for loss in losses:
                    await self._hide_one(loss)
        except (Unavailable, TimeoutError) as error:
            _log.warning("hide.delayed", error=repr(error))

    async def _hide_one(self, loss: Loss) -> None:
        reader_id, author_id, version = loss.reader_id, loss.author_id, loss.version
        while not await self._timelines.hide(reader_id, author_id, version):
            # A show at a later version came first: perhaps of this author, who is followed again.
            [check] = await self._store.check([(reader_id, author_id)])
            if check.follows and not check.muted:
                return
            version = check.version

    async def _settle(self, account_id: int) -> None:
        """Begins a change of an account's mode if its number of followers requires one.

        Errors are logged, not raised, because the caller's own change is already committed.
        """
        try:
            await self._audiences.settle(account_id)
        except Unavailable as error:
            _log.warning("mode_change.failed", account_id=account_id, error=repr(error))


def _relationship(relation: Relation) -> pb.Relationship:
    # A blocked account must not be able to tell the blocker from a stranger.
    hidden = relation.blocked_by
    return pb.Relationship(
        account_id=relation.other_id,
        follows=relation.follows,
        requested=relation.requested,
        followed_by=relation.followed_by,
        requested_by=relation.requested_by,
        blocks=relation.blocks,
        mutes=relation.mutes,
        private=relation.private and not hidden,
    )
