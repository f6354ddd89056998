"""Periodic jobs of the media service."""

from datetime import UTC, datetime

from services.chassis.database.ids import least_id
from services.chassis.telemetry import logs
from services.media.limits import LIMITS
from services.media.store import MediaStore
from services.media.uploads.lifecycle import Uploads

SWEEP_SECONDS = 60.0
"""The mean pause between sweeps."""

_BATCH = 20
"""How many uploads are removed in one transaction."""

_log = logs.logger(__name__)


async def sweep_uploads(store: MediaStore, uploads: Uploads, now: datetime | None = None) -> None:
    """Aborts uploads that were never completed, and removes aborted ones with their data.

    Replicas may sweep concurrently: each locks different rows.

    Args:
        store: stores the uploads.
        uploads: removes their data.
        now: the time that ages are compared with; None: the current time.

    Raises:
        Unavailable: the database or S3 is unavailable; the next sweeps remove the rest.
    """
    old = (now or datetime.now(UTC)) - LIMITS.abandoned_after
    while await store.abandon(before=least_id(old), limit=_BATCH) == _BATCH:
        pass
    # Keeps aborted uploads until their last form has expired: a file that is POSTed after the
    # removal would never be removed.
    expired = least_id(old - LIMITS.form_life)
    removed = _BATCH
    while removed == _BATCH:
        removed = await store.remove_aborted(uploads.remove_data, before=expired, limit=_BATCH)
        if removed:
            _log.info("uploads.removed", uploads=removed)
