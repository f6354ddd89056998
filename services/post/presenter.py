"""Posts as people see them: with their author's name, and URLs that the CDN accepts."""

from collections.abc import Collection, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from photomesh.account.v1.account_internal_service_pb2 import BatchGetAccountsRequest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.account.v1.account_service_pb2 import AccountSummary
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1 import post_service_pb2 as pb

from services.common import client, logs
from services.common.cdn import UrlSigner
from services.common.errors import MeshError
from services.common.ids import created_at
from services.common.presented_media import present_media
from services.post.store import Post

_NAMES_WITHIN_SECONDS = 0.5

_log = logs.logger(__name__)


class Presenter:
    """Makes the public form of posts."""

    def __init__(self, accounts: AccountInternalServiceStub, signer: UrlSigner) -> None:
        self._accounts = accounts
        self._signer = signer

    async def present(self, post: Post, media: Sequence[StoredMedia]) -> pb.Post:
        """Returns one post with its media."""
        return (await self.present_all([(post, media)]))[0]

    async def present_all(
        self, posts: Sequence[tuple[Post, Sequence[StoredMedia]]]
    ) -> list[pb.Post]:
        """Returns posts, each given with its media, in their order."""
        authors = await self._authors({post.author_id for post, _ in posts})
        return [self._to_pb(post, authors[post.author_id], media) for post, media in posts]

    async def _authors(self, author_ids: Collection[int]) -> dict[int, AccountSummary]:
        """Returns a summary of each account.

        A post without its author's name is of more use than none. So while account is away, or
        stalls, the name is left empty, which tells whoever caches posts not to keep this one.
        """
        authors = {author_id: AccountSummary(account_id=author_id) for author_id in author_ids}
        if not author_ids:
            return authors
        try:
            answer = await client.call(
                self._accounts.BatchGetAccounts,
                BatchGetAccountsRequest(account_ids=author_ids),
                within=_NAMES_WITHIN_SECONDS,
            )
        except (MeshError, grpc.aio.AioRpcError) as error:
            _log.warning("posts are served without names", error=repr(error))
            return authors
        return authors | {author.account_id: author for author in answer.accounts}

    def _to_pb(self, post: Post, author: AccountSummary, media: Sequence[StoredMedia]) -> pb.Post:
        create_time = Timestamp()
        create_time.FromDatetime(created_at(post.post_id))
        return pb.Post(
            post_id=post.post_id,
            author=author,
            caption=post.caption,
            media=[present_media(item, self._signer) for item in media],
            state=pb.PostState.Value(f"POST_STATE_{post.state}"),
            create_time=create_time,
        )
