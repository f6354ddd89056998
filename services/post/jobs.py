"""Periodic jobs of the post service."""

from services.chassis.errors import Unavailable
from services.chassis.telemetry import logs
from services.post.resolver import Resolver
from services.post.store import PostStore

_SWEEP_BATCH = 100

_log = logs.logger(__name__)


async def sweep(store: PostStore, resolver: Resolver) -> None:
    """Resolves posts that have been PROCESSING for over 10 s, unless swept in the last 30 s.

    Raises:
        Unavailable: media or the database is unavailable; the next sweeps resolve the rest.
    """
    while posts := await store.take_unresolved(_SWEEP_BATCH):
        for post in posts:
            try:
                await resolver.resolve(post)
            except Unavailable:
                raise
            except Exception:
                # A post that cannot be resolved must not block the others.
                _log.exception("post.resolve_failed", post_id=post.post_id)
        if len(posts) < _SWEEP_BATCH:
            return
