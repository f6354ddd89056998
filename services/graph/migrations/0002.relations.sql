-- What stands between two accounts besides follows: requests, blocks, mutes. Like follows, each is
-- kept with its owner, and a request, which has two, twice.

CREATE FUNCTION shard_of(identifier bigint) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (identifier >> 10 & 8191)::smallint;

-- `followee_counts` is what an account is as a reader. Its lock is taken first by whatever changes
-- what the reader gets, or may get, from anybody.
ALTER TABLE followee_counts
    -- How many requests to follow wait. They count towards the limit, so that one that is accepted
    -- never exceeds it.
    ADD COLUMN requested integer NOT NULL DEFAULT 0,
    -- Grows with every change of what the reader gets from anybody.
    ADD COLUMN version bigint NOT NULL DEFAULT 0;

-- The accounts whose owners choose their followers; all others are public.
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

-- Whom an account ceased to follow within the last hour, by its own will or not: their posts may
-- still be on their way into its feed. Older rows go with the account's next departure.
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

-- Lists are read newest first.
CREATE INDEX follows_newest ON follows (shard, follower_id, create_time DESC, followee_id DESC);
CREATE INDEX followers_newest ON followers (shard, followee_id, create_time DESC, follower_id DESC);
CREATE INDEX sent_requests_newest
    ON sent_requests (shard, requester_id, create_time DESC, target_id DESC);
CREATE INDEX received_requests_newest
    ON received_requests (shard, target_id, create_time DESC, requester_id DESC);
CREATE INDEX blocks_newest ON blocks (shard, blocker_id, create_time DESC, blocked_id DESC);
CREATE INDEX mutes_newest ON mutes (shard, muter_id, create_time DESC, muted_id DESC);

-- The accounts that are, or once were, followed by so many that their posts are not pushed. Few,
-- and joined with every reader's follows, so the table is whole on each node (on Citus: a
-- reference table).
CREATE TABLE celebrities (
    account_id bigint PRIMARY KEY,
    mode       text NOT NULL DEFAULT 'PUSHED'
               CHECK (mode IN ('PUSHED', 'PROMOTING', 'PULLED', 'DEMOTING')),
    -- Counts the changes of mode that were begun.
    change_id  bigint NOT NULL DEFAULT 0
);
