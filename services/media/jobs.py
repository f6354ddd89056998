"""Jobs of the media service that run by time."""

from datetime import UTC, datetime

from services.chassis.database.ids import least_id
from services.chassis.telemetry import logs
from services.media.limits import LIMITS, UploadLimits
from services.media.store import MediaStore
from services.media.uploads.lifecycle import Uploads

SWEEP_SECONDS = 60.0
"""The mean pause between sweeps."""

_BATCH = 20
"""How many uploads are removed in one transaction."""

_log = logs.logger(__name__)


class UploadSweeper:
    """Aborts abandoned uploads, and removes aborted ones.

    Any number of sweepers may run at a time: each locks different rows.
    """

    def __init__(self, store: MediaStore, uploads: Uploads, limits: UploadLimits = LIMITS) -> None:
        self._store = store
        self._uploads = uploads
        self._limits = limits

    async def sweep(self, now: datetime | None = None) -> None:
        """Sweeps once; `now`: the time that ages are compared with, if not the current time.

        Raises:
            Unavailable: the database or S3 is unavailable; the next sweeps remove the rest.
        """
        old = (now or datetime.now(UTC)) - self._limits.abandoned_after
        while await self._store.abandon(before=least_id(old), most=_BATCH) == _BATCH:
            pass
        # Waits until the last form of an upload has expired: a file that is POSTed after the
        # removal would never be removed.
        expired = least_id(old - self._limits.form_life)
        while True:
            removed = await self._store.remove_aborted(
                self._uploads.remove_data, before=expired, most=_BATCH
            )
            if removed:
                _log.info("uploads.removed", uploads=removed)
            if removed < _BATCH:
                return
