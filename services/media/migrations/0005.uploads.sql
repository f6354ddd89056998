-- How a client uploads a file; the code calls it the upload method.
CREATE TYPE upload_door AS ENUM ('FORM', 'PARTS', 'STREAM');

ALTER TABLE media
    ADD COLUMN door upload_door NOT NULL DEFAULT 'FORM',
    -- The SHA-256 of the original: declared while PENDING, then verified; NULL: unknown.
    ADD COLUMN sha256 bytea CHECK (octet_length(sha256) = 32),
    -- S3's id of a multipart upload.
    ADD COLUMN s3_upload_id text,
    -- Hides the upload from all queries except the sweeper's, which removes it after its form has
    -- expired.
    ADD COLUMN aborted boolean NOT NULL DEFAULT false;

CREATE INDEX media_content ON media (shard, owner_id, sha256) WHERE sha256 IS NOT NULL;

-- Contains only uploads in progress and abandoned ones, so it stays small.
CREATE INDEX media_pending ON media (media_id) WHERE state = 'PENDING';
