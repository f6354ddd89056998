CREATE TYPE upload_door AS ENUM ('FORM', 'PARTS', 'STREAM');

ALTER TABLE media
    ADD COLUMN door upload_door NOT NULL DEFAULT 'FORM',
    -- As declared, or as counted while the bytes passed through; NULL: nobody has told.
    ADD COLUMN sha256 bytea CHECK (octet_length(sha256) = 32),
    -- S3's name of an upload in parts.
    ADD COLUMN s3_upload_id text,
    -- Given up: unknown to everybody but the sweeper, which removes it when its form has expired.
    ADD COLUMN aborted boolean NOT NULL DEFAULT false;

CREATE INDEX media_content ON media (shard, owner_id, sha256) WHERE sha256 IS NOT NULL;

-- Few at any time: uploads that are on their way, or were abandoned.
CREATE INDEX media_pending ON media (media_id) WHERE state = 'PENDING';
