-- When the files of a DELETED item are removed once more: by then no form or link for its upload
-- and no worker that had begun it can add another. NULL once that is done.
ALTER TABLE media
    ADD COLUMN erase_time timestamptz,
    -- Whether a DELETED item has an ETag depends on when it was deleted.
    DROP CONSTRAINT media_check,
    ADD CONSTRAINT media_checked CHECK (state = 'DELETED' OR (state = 'PENDING') = (etag IS NULL));

-- Holds only what is to be erased, so looking into it costs nothing when nothing is.
CREATE INDEX media_to_erase ON media (erase_time) WHERE erase_time IS NOT NULL;
