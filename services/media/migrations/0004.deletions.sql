-- When the files of a DELETED item are removed for the second time. By then, no upload form or URL
-- and no worker that was processing the item can add a file. NULL after that removal.
ALTER TABLE media
    ADD COLUMN erase_time timestamptz,
    -- A DELETED item has an ETag only if its upload was completed before the deletion.
    DROP CONSTRAINT media_check,
    ADD CONSTRAINT media_checked CHECK (state = 'DELETED' OR (state = 'PENDING') = (etag IS NULL));

-- Contains only items whose second removal is pending, so scanning it is cheap.
CREATE INDEX media_to_erase ON media (erase_time) WHERE erase_time IS NOT NULL;
