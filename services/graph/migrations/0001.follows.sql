-- Each follow is kept twice, each time with its owner: whom do I follow, and who follows me. The
-- shard is the owner's, and on Citus the distribution column.

-- The truth.
CREATE TABLE follows (
    shard       smallint NOT NULL,
    follower_id bigint NOT NULL,
    followee_id bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, follower_id, followee_id)
) PARTITION BY HASH (shard);

CREATE TABLE follows_0 PARTITION OF follows FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE follows_1 PARTITION OF follows FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE follows_2 PARTITION OF follows FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE follows_3 PARTITION OF follows FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- Who must receive a post.
CREATE TABLE followers (
    shard       smallint NOT NULL,
    followee_id bigint NOT NULL,
    follower_id bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, followee_id, follower_id)
) PARTITION BY HASH (shard);

CREATE TABLE followers_0 PARTITION OF followers FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE followers_1 PARTITION OF followers FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE followers_2 PARTITION OF followers FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE followers_3 PARTITION OF followers FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- How many accounts one follows. An account's follows happen one at a time behind the lock of this
-- row, which makes the limit exact.
CREATE TABLE followee_counts (
    shard       smallint NOT NULL,
    follower_id bigint NOT NULL,
    followees   integer NOT NULL,
    PRIMARY KEY (shard, follower_id)
) PARTITION BY HASH (shard);

CREATE TABLE followee_counts_0 PARTITION OF followee_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE followee_counts_1 PARTITION OF followee_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE followee_counts_2 PARTITION OF followee_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE followee_counts_3 PARTITION OF followee_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- How many follow one: the sum over its slots. Thousands may follow a celebrity within a second,
-- and one row would let them in one after the other, so followers are spread over 16 by their shard.
-- Nothing reads it yet, but it can only be exact if it is kept from the first follow on.
CREATE TABLE follower_counts (
    shard       smallint NOT NULL,
    followee_id bigint NOT NULL,
    slot        smallint NOT NULL,
    followers   integer NOT NULL,
    PRIMARY KEY (shard, followee_id, slot)
) PARTITION BY HASH (shard);

CREATE TABLE follower_counts_0 PARTITION OF follower_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE follower_counts_1 PARTITION OF follower_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE follower_counts_2 PARTITION OF follower_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE follower_counts_3 PARTITION OF follower_counts
    FOR VALUES WITH (MODULUS 4, REMAINDER 3);
