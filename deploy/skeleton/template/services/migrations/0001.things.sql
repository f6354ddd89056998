-- shard is the owner's shard, which owner_id and thing_id also encode. On Citus, it is the
-- distribution column.
CREATE TABLE things (
    shard    smallint NOT NULL,
    thing_id bigint NOT NULL,
    owner_id bigint NOT NULL,
    text     text NOT NULL,
    handled  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (shard, thing_id)
) PARTITION BY HASH (shard);

CREATE TABLE things_0 PARTITION OF things FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE things_1 PARTITION OF things FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE things_2 PARTITION OF things FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE things_3 PARTITION OF things FOR VALUES WITH (MODULUS 4, REMAINDER 3);

CREATE INDEX things_newest ON things (shard, owner_id, thing_id DESC);
