-- Relations between two accounts besides follows: requests, blocks and mutes. Blocks and mutes are
-- stored on the shard of the account that made them; requests, like follows, on both accounts'
-- shards.

CREATE FUNCTION shard_of(identifier bigint) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (identifier >> 10 & 8191)::smallint;

-- A row of `followee_counts` represents an account as a reader. Every change to what the reader
-- receives, or may receive, locks this row first.
ALTER TABLE followee_counts
    -- The number of pending follow requests. They count towards the limit, so that accepting one
    -- never exceeds it.
    ADD COLUMN requested integer NOT NULL DEFAULT 0,
    -- Incremented with every change to what the reader receives.
    ADD COLUMN version bigint NOT NULL DEFAULT 0;

-- Accounts that approve their followers; all others are public.
CREATE TABLE private_accounts (
    shard      smallint NOT NULL,
    account_id bigint NOT NULL,
    PRIMARY KEY (shard, account_id)
) PARTITION BY HASH (shard);

CREATE TABLE sent_requests (
    shard        smallint NOT NULL,
    requester_id bigint NOT NULL,
    target_id    bigint NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, requester_id, target_id)
) PARTITION BY HASH (shard);

CREATE TABLE received_requests (
    shard        smallint NOT NULL,
    target_id    bigint NOT NULL,
    requester_id bigint NOT NULL,
    create_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, target_id, requester_id)
) PARTITION BY HASH (shard);

CREATE TABLE blocks (
    shard       smallint NOT NULL,
    blocker_id  bigint NOT NULL,
    blocked_id  bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, blocker_id, blocked_id)
) PARTITION BY HASH (shard);

CREATE TABLE mutes (
    shard       smallint NOT NULL,
    muter_id    bigint NOT NULL,
    muted_id    bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, muter_id, muted_id)
) PARTITION BY HASH (shard);

-- The follows that ended within the last hour, by unfollow, removal or block: fan-out may still push
-- posts of these followees. Older rows are deleted when another follow of the follower ends.
CREATE TABLE departures (
    shard       smallint NOT NULL,
    follower_id bigint NOT NULL,
    followee_id bigint NOT NULL,
    leave_time  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, follower_id, followee_id)
) PARTITION BY HASH (shard);

DO $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY[
        'private_accounts', 'sent_requests', 'received_requests', 'blocks', 'mutes', 'departures'
    ] LOOP
        FOR remainder IN 0..3 LOOP
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF %I FOR VALUES WITH (MODULUS 4, REMAINDER %s)',
                parent || '_' || remainder, parent, remainder
            );
        END LOOP;
    END LOOP;
END
$$;

-- For lists, which are read newest first.
CREATE INDEX follows_newest ON follows (shard, follower_id, create_time DESC, followee_id DESC);
CREATE INDEX followers_newest ON followers (shard, followee_id, create_time DESC, follower_id DESC);
CREATE INDEX sent_requests_newest
    ON sent_requests (shard, requester_id, create_time DESC, target_id DESC);
CREATE INDEX received_requests_newest
    ON received_requests (shard, target_id, create_time DESC, requester_id DESC);
CREATE INDEX blocks_newest ON blocks (shard, blocker_id, create_time DESC, blocked_id DESC);
CREATE INDEX mutes_newest ON mutes (shard, muter_id, create_time DESC, muted_id DESC);

-- Accounts that have, or once had, so many followers that their posts are pulled. The table is
-- small, and joined with every reader's follows, so each node has a full copy (on Citus: a reference
-- table).
CREATE TABLE celebrities (
    account_id bigint PRIMARY KEY,
    mode       text NOT NULL DEFAULT 'PUSHED'
               CHECK (mode IN ('PUSHED', 'PROMOTING', 'PULLED', 'DEMOTING')),
    -- The number of mode changes that have begun.
    change_id  bigint NOT NULL DEFAULT 0
);
