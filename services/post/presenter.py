"""Converts posts to their public form, with the author's name and signed CDN URLs."""

from collections.abc import Collection, Iterable, Sequence

from photomesh.account.v1.account_service_pb2 import AccountSummary
from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.post.v1 import post_internal_service_pb2 as internal_pb
from photomesh.post.v1 import post_service_pb2 as pb

from services.chassis.database.ids import EPOCH_MS, age_of
from services.domain.account_names import AccountNames
from services.domain.cdn import UrlSigner
from services.domain.presented_media import write_media
from services.post.store import Post


class Presenter:
    """Converts posts to their public form."""

    def __init__(self, names: AccountNames, signer: UrlSigner) -> None:
        self._names = names
        self._signer = signer

    async def present(self, post: Post, media: Sequence[StoredMedia]) -> pb.Post:
        """Returns one post with its media."""
        presented = pb.Post()
        authors = await self._authors({post.author_id})
        self._write(presented, post, authors[post.author_id], media)
        return presented

    async def present_all(self, posts: Iterable[Post | None]) -> internal_pb.BatchGetPostsResponse:
        """Returns published posts in the given order, and a blank post for each None.

        Writes directly into the response: copying a hundred posts would double the cost.
        """
        posts = list(posts)
        authors = await self._authors({post.author_id for post in posts if post})
        response = internal_pb.BatchGetPostsResponse()
        for post in posts:
            presented = response.posts.add()
            if post:
                self._write(presented, post, authors[post.author_id], post.snapshots)
        return response

    async def _authors(self, author_ids: Collection[int]) -> dict[int, AccountSummary]:
        """Returns a summary of each account, without a name if account is unavailable."""
        summaries = await self._names.of(list(author_ids))
        return {
            author_id: summary if summary.account_id else AccountSummary(account_id=author_id)
            for author_id, summary in zip(author_ids, summaries, strict=True)
        }

    def _write(
        self, presented: pb.Post, post: Post, author: AccountSummary, media: Sequence[StoredMedia]
    ) -> None:
        presented.post_id = post.post_id
        presented.author.CopyFrom(author)
        presented.caption = post.caption
        for item in media:
            write_media(presented.media.add(), item, self._signer)
        presented.state = pb.PostState.Value(f"POST_STATE_{post.state}")
        presented.create_time.FromMilliseconds(EPOCH_MS + age_of(post.post_id))
