-- The shard is the author's; it is part of author_id, of post_id and of the media's ids, too. On
-- Citus it is the distribution column.
CREATE TABLE posts (
    shard       smallint NOT NULL,
    post_id     bigint NOT NULL,
    author_id   bigint NOT NULL,
    caption     text NOT NULL,
    state       text NOT NULL CHECK (state IN ('PROCESSING', 'PUBLISHED', 'FAILED')),
    -- Empty: the client gave none.
    request_id  text NOT NULL,
    -- When the sweep looks at the post next, while it is PROCESSING.
    settle_time timestamptz NOT NULL,
    PRIMARY KEY (shard, post_id)
) PARTITION BY HASH (shard);

CREATE TABLE posts_0 PARTITION OF posts FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE posts_1 PARTITION OF posts FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE posts_2 PARTITION OF posts FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE posts_3 PARTITION OF posts FOR VALUES WITH (MODULUS 4, REMAINDER 3);

CREATE INDEX posts_published ON posts (shard, author_id, post_id DESC)
    WHERE state = 'PUBLISHED';

CREATE UNIQUE INDEX posts_request ON posts (shard, author_id, request_id)
    WHERE request_id <> '';

-- Holds only what is on its way, so looking into it costs nothing when nothing is.
CREATE INDEX posts_unsettled ON posts (settle_time) WHERE state = 'PROCESSING';

-- What a post shows, in the author's order.
CREATE TABLE post_media (
    shard    smallint NOT NULL,
    post_id  bigint NOT NULL,
    position smallint NOT NULL,
    media_id bigint NOT NULL,
    -- The media as it was when the post was published: a photomesh.media.v1.StoredMedia.
    snapshot bytea,
    PRIMARY KEY (shard, post_id, position)
) PARTITION BY HASH (shard);

CREATE TABLE post_media_0 PARTITION OF post_media FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE post_media_1 PARTITION OF post_media FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE post_media_2 PARTITION OF post_media FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE post_media_3 PARTITION OF post_media FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- Which posts wait for a media item.
CREATE INDEX post_media_awaited ON post_media (shard, media_id) WHERE snapshot IS NULL;
