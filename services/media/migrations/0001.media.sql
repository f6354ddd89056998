CREATE TYPE media_state AS ENUM ('PENDING', 'UPLOADED', 'PROCESSING', 'READY', 'FAILED');

CREATE TYPE media_failure AS ENUM (
    'NOT_AN_IMAGE', 'CORRUPT', 'TOO_MANY_PIXELS', 'TOO_EXPENSIVE'
);

-- The shard is the owner's, and on Citus the distribution column. Where the files lie follows from
-- the ids, see services/media/storage.py.
CREATE TABLE media (
    shard        smallint NOT NULL,
    media_id     bigint NOT NULL,
    owner_id     bigint NOT NULL,
    -- NULL: the client gave none.
    request_id   text,
    -- As declared, in bytes.
    size_bytes   bigint NOT NULL,
    content_type text NOT NULL,
    state        media_state NOT NULL DEFAULT 'PENDING',
    -- Of the original that was checked: no other is ever processed.
    etag         text,
    failure      media_failure,
    -- Of the upright picture, in pixels.
    width        integer,
    height       integer,
    -- [{name, content_type, object_name, width, height, size_bytes}, ...], smallest first.
    variants     jsonb,
    PRIMARY KEY (shard, media_id),
    CHECK ((state = 'PENDING') = (etag IS NULL)),
    CHECK ((state = 'FAILED') = (failure IS NOT NULL)),
    CHECK ((state = 'READY') = (num_nonnulls(width, height, variants) = 3))
) PARTITION BY HASH (shard);

CREATE TABLE media_0 PARTITION OF media FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE media_1 PARTITION OF media FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE media_2 PARTITION OF media FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE media_3 PARTITION OF media FOR VALUES WITH (MODULUS 4, REMAINDER 3);

CREATE UNIQUE INDEX media_requests ON media (shard, owner_id, request_id)
    WHERE request_id IS NOT NULL;
