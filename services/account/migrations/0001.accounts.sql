-- The shard is the one that the account drew at sign-up; it is part of account_id, too. On Citus
-- it is the distribution column.
CREATE TABLE accounts (
    shard         smallint NOT NULL,
    account_id    bigint NOT NULL,
    username      text NOT NULL,
    password_hash text NOT NULL,
    PRIMARY KEY (shard, account_id)
) PARTITION BY HASH (shard);

CREATE TABLE accounts_0 PARTITION OF accounts FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE accounts_1 PARTITION OF accounts FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE accounts_2 PARTITION OF accounts FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE accounts_3 PARTITION OF accounts FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- A username is unique across all shards, so it has a table of its own, keyed by its normal form.
CREATE TABLE usernames (
    normal_name text PRIMARY KEY,
    account_id  bigint NOT NULL
);

-- A session is a chain of refresh tokens of which only the newest is good.
CREATE TABLE sessions (
    shard          smallint NOT NULL,
    account_id     bigint NOT NULL,
    session_id     bigint NOT NULL,
    token_hash     bytea NOT NULL,
    expire_time    timestamptz NOT NULL,
    PRIMARY KEY (shard, account_id, session_id)
) PARTITION BY HASH (shard);

CREATE TABLE sessions_0 PARTITION OF sessions FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE sessions_1 PARTITION OF sessions FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE sessions_2 PARTITION OF sessions FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE sessions_3 PARTITION OF sessions FOR VALUES WITH (MODULUS 4, REMAINDER 3);
