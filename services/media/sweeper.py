"""Removes uploads that were never completed."""

from datetime import datetime

from services.chassis.database.ids import least_id
from services.chassis.telemetry import logs
from services.media.limits import LIMITS, UploadLimits
from services.media.store import MediaStore
from services.media.uploads import Uploads

SWEEP_SECONDS = 60.0
"""The mean pause between sweeps."""

_BATCH = 20
"""How many uploads are removed in one transaction."""

_log = logs.logger(__name__)


class Sweeper:
    """Aborts abandoned uploads, and removes aborted ones.

    Any number of sweepers may run at a time: each locks different rows.
    """

    def __init__(self, store: MediaStore, uploads: Uploads, limits: UploadLimits = LIMITS) -> None:
        self._store = store
        self._uploads = uploads
        self._limits = limits

    async def sweep(self, now: datetime) -> None:
        """Sweeps once; `now` is the time that ages are compared with."""
        old = now - self._limits.abandoned_after
        while await self._store.abandon(before=least_id(old), most=_BATCH) == _BATCH:
            pass
        # Waits until the last form of an upload has expired: a file that is POSTed after the
        # removal would never be removed.
        expired = least_id(old - self._limits.form_life)
        while True:
            removed = await self._store.remove_aborted(
                self._uploads.clear, before=expired, most=_BATCH
            )
            if removed:
                _log.info("uploads.removed", uploads=removed)
            if removed < _BATCH:
                return
