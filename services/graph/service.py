"""The graph service's public methods, in the order of the contract."""

import asyncio
from collections.abc import Sequence
from typing import Any

from photomesh.graph.v1 import graph_service_pb2 as pb
from photomesh.graph.v1.graph_service_pb2_grpc import GraphServiceServicer

from services.chassis.context import signed_in
from services.chassis.errors import Unavailable
from services.chassis.rpc import Context
from services.chassis.rpc.paging import PageTokens
from services.chassis.telemetry import logs
from services.chassis.timestamps import to_timestamp
from services.domain.errors import AccountUnknown
from services.domain.timelines import HomeTimelines
from services.graph.errors import AccountPrivate, OwnAccount
from services.graph.peers import Peers
from services.graph.store.audiences import Audiences
from services.graph.store.lists import AccountList, Lists, Position
from services.graph.store.relations import FollowState, Loss, Relation, Relations

_DEFAULT_PAGE_SIZE = 50

_HIDE_WITHIN_SECONDS = 0.3

_log = logs.logger(__name__)


class GraphService(GraphServiceServicer):
    """The follow graph: the public methods."""

    def __init__(
        self,
        relations: Relations,
        lists: Lists,
        audiences: Audiences,
        timelines: HomeTimelines,
        peers: Peers,
        page_key: bytes,
    ) -> None:
        self._relations = relations
        self._lists = lists
        self._audiences = audiences
        self._timelines = timelines
        self._peers = peers
        self._page_key = page_key

    # -- Follows and requests ------------------------------------------------------------------

    async def Follow(self, request: pb.FollowRequest, context: Context) -> pb.FollowResponse:
        follower_id = await self._caller_towards(request.account_id)
        state = await self._relations.follow(follower_id, request.account_id)
        if state is FollowState.REQUESTED:
            return pb.FollowResponse(state=pb.FollowState.FOLLOW_STATE_REQUESTED)
        await self._update_mode(request.account_id)
        return pb.FollowResponse(state=pb.FollowState.FOLLOW_STATE_FOLLOWING)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Context) -> pb.UnfollowResponse:
        losses = await self._relations.unfollow(signed_in(), request.account_id)
        await self._hide(losses)
        await self._update_mode(request.account_id)
        return pb.UnfollowResponse()

    async def AcceptFollow(
        self, request: pb.AcceptFollowRequest, context: Context
    ) -> pb.AcceptFollowResponse:
        account_id = signed_in()
        await self._relations.accept(account_id, request.account_id)
        await self._update_mode(account_id)
        return pb.AcceptFollowResponse()

    async def DeclineFollow(
        self, request: pb.DeclineFollowRequest, context: Context
    ) -> pb.DeclineFollowResponse:
        await self._relations.decline(signed_in(), request.account_id)
        return pb.DeclineFollowResponse()

    async def RemoveFollower(
        self, request: pb.RemoveFollowerRequest, context: Context
    ) -> pb.RemoveFollowerResponse:
        account_id = signed_in()
        losses = await self._relations.remove_follower(account_id, request.account_id)
        await self._hide(losses)
        await self._update_mode(account_id)
        return pb.RemoveFollowerResponse()

    # -- Blocks, mutes, privacy ----------------------------------------------------------------

    async def Block(self, request: pb.BlockRequest, context: Context) -> pb.BlockResponse:
        blocker_id = await self._caller_towards(request.account_id)
        losses = await self._relations.block(blocker_id, request.account_id)
        await self._hide(losses)
        for loss in losses:
            await self._update_mode(loss.author_id)
        return pb.BlockResponse()

    async def Unblock(self, request: pb.UnblockRequest, context: Context) -> pb.UnblockResponse:
        await self._relations.unblock(signed_in(), request.account_id)
        return pb.UnblockResponse()

    async def Mute(self, request: pb.MuteRequest, context: Context) -> pb.MuteResponse:
        muter_id = await self._caller_towards(request.account_id)
        losses = await self._relations.mute(muter_id, request.account_id)
        await self._hide(losses)
        return pb.MuteResponse()

    async def Unmute(self, request: pb.UnmuteRequest, context: Context) -> pb.UnmuteResponse:
        await self._relations.unmute(signed_in(), request.account_id)
        return pb.UnmuteResponse()

    async def GetPrivacy(
        self, request: pb.GetPrivacyRequest, context: Context
    ) -> pb.GetPrivacyResponse:
        return pb.GetPrivacyResponse(private=await self._relations.is_private(signed_in()))

    async def SetPrivacy(
        self, request: pb.SetPrivacyRequest, context: Context
    ) -> pb.SetPrivacyResponse:
        await self._relations.set_private(signed_in(), request.private)
        return pb.SetPrivacyResponse()

    # -- Relationships and counts --------------------------------------------------------------

    async def BatchGetRelationships(
        self, request: pb.BatchGetRelationshipsRequest, context: Context
    ) -> pb.BatchGetRelationshipsResponse:
        relations = await self._relations.between(signed_in(), request.account_ids)
        return pb.BatchGetRelationshipsResponse(
            relationships=[_relationship(relation) for relation in relations]
        )

    async def GetFollowCounts(
        self, request: pb.GetFollowCountsRequest, context: Context
    ) -> pb.GetFollowCountsResponse:
        if request.account_id != signed_in():
            await self._relation_to(request.account_id)
        audience = await self._audiences.audience(request.account_id)
        return pb.GetFollowCountsResponse(
            followers=audience.followers,
            followees=await self._relations.count_followees(request.account_id),
        )

    # -- Lists ---------------------------------------------------------------------------------

    async def ListFollowers(
        self, request: pb.ListFollowersRequest, context: Context
    ) -> pb.ListFollowersResponse:
        await self._check_may_list(request.account_id)
        followers, token = await self._page(AccountList.FOLLOWERS, request.account_id, request)
        return pb.ListFollowersResponse(followers=followers, next_page_token=token)

    async def ListFollowing(
        self, request: pb.ListFollowingRequest, context: Context
    ) -> pb.ListFollowingResponse:
        await self._check_may_list(request.account_id)
        followees, token = await self._page(AccountList.FOLLOWEES, request.account_id, request)
        return pb.ListFollowingResponse(followees=followees, next_page_token=token)

    async def ListReceivedRequests(
        self, request: pb.ListReceivedRequestsRequest, context: Context
    ) -> pb.ListReceivedRequestsResponse:
        requesters, token = await self._page(AccountList.RECEIVED_REQUESTS, signed_in(), request)
        return pb.ListReceivedRequestsResponse(requesters=requesters, next_page_token=token)

    async def ListSentRequests(
        self, request: pb.ListSentRequestsRequest, context: Context
    ) -> pb.ListSentRequestsResponse:
        requested, token = await self._page(AccountList.SENT_REQUESTS, signed_in(), request)
        return pb.ListSentRequestsResponse(requested=requested, next_page_token=token)

    async def ListBlocks(
        self, request: pb.ListBlocksRequest, context: Context
    ) -> pb.ListBlocksResponse:
        blocked, token = await self._page(AccountList.BLOCKS, signed_in(), request)
        return pb.ListBlocksResponse(blocked=blocked, next_page_token=token)

    async def ListMutes(
        self, request: pb.ListMutesRequest, context: Context
    ) -> pb.ListMutesResponse:
        muted, token = await self._page(AccountList.MUTES, signed_in(), request)
        return pb.ListMutesResponse(muted=muted, next_page_token=token)

    async def _check_may_list(self, account_id: int) -> None:
        """Checks that the caller may see an account's followers and followees.

        Raises:
            AccountUnknown: there is no such account, or one blocks the other.
            AccountPrivate: it is private, and the caller does not follow it.
        """
        if account_id != signed_in() and not (await self._relation_to(account_id)).sees:
            raise AccountPrivate(account_id)

    async def _page(
        self, which: AccountList, owner_id: int, request: Any
    ) -> tuple[list[pb.ListedAccount], str]:
        """Returns a page of a list, and the token of the next page.

        `request` has `page_size` and `page_token`.
        """
        viewer_id = signed_in()
        # A token is valid only for the list that it was made for.
        tokens = PageTokens(self._page_key, f"graph.{which.name}.{owner_id}")
        before = None
        if request.page_token:
            before = Position(*tokens.open_time(request.page_token, viewer_id))
        size = request.page_size or _DEFAULT_PAGE_SIZE
        # One extra row shows whether there is a next page.
        rows = await self._lists.page(which, owner_id, viewer_id, before=before, limit=size + 1)
        page = rows[:size]
        token = ""
        if len(rows) > size:
            token = tokens.seal_time(page[-1].create_time, page[-1].account_id, viewer_id)
        return await self._listed(page), token

    async def _listed(self, page: Sequence[Position]) -> list[pb.ListedAccount]:
        """Returns the accounts of a page with their names; omits deleted ones."""
        summaries = await self._peers.names.of([position.account_id for position in page])
        return [
            pb.ListedAccount(account=summary, create_time=to_timestamp(position.create_time))
            for position, summary in zip(page, summaries, strict=True)
            if summary.account_id
        ]

    # -- Shared by several methods -------------------------------------------------------------

    async def _relation_to(self, account_id: int) -> Relation:
        """Returns the relation between the caller and another account.

        Raises:
            AccountUnknown: there is no such account, or one blocks the other.
        """
        [relation] = await self._relations.between(signed_in(), [account_id])
        if relation.blocked:
            raise AccountUnknown(account_id)
        await self._peers.check_account(account_id)
        return relation

    async def _caller_towards(self, account_id: int) -> int:
        """Returns the caller's id, after checking that it may act on an account.

        Raises:
            OwnAccount: the account is the caller's own.
            AccountUnknown: there is no such account.
        """
        caller_id = signed_in()
        if account_id == caller_id:
            raise OwnAccount
        await self._peers.check_account(account_id)
        return caller_id

    async def _hide(self, losses: Sequence[Loss]) -> None:
        """Hides lost authors in the readers' timelines before the call returns.

        Logs a failure, because the event hides them a little later in any case.
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
            # The timeline is at a later version: the reader may follow the author again.
            [check] = await self._relations.check([(reader_id, author_id)])
            if check.follows and not check.muted:
                return
            version = check.version

    async def _update_mode(self, account_id: int) -> None:
        """Begins a change of an account's mode if its number of followers requires one.

        Errors are logged, not raised, because the caller's own change is already committed.
        """
        try:
            await self._audiences.update_mode(account_id)
        except Unavailable as error:
            _log.warning("mode_change.failed", account_id=account_id, error=repr(error))


def _relationship(relation: Relation) -> pb.Relationship:
    # A blocked account must not be able to detect the block.
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
