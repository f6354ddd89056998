-- Large audiences, cut into chunks that workers share. See services/fanout/store.py.

CREATE TABLE fanouts (
    fanout_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The event that asked for it: when it comes again, it asks for nothing new.
    source      text NOT NULL UNIQUE,
    kind        text NOT NULL CHECK (kind IN ('POST', 'MODE')),
    account_id  bigint NOT NULL,
    -- The post, or the change of mode.
    subject_id  bigint NOT NULL,
    -- When it began.
    followers   bigint NOT NULL,
    chunks      integer NOT NULL,
    chunks_done integer NOT NULL DEFAULT 0,
    begin_time  timestamptz NOT NULL DEFAULT now(),
    finish_time timestamptz
);

-- Holds only what is under way.
CREATE INDEX fanouts_in_flight ON fanouts (fanout_id) WHERE finish_time IS NULL;
CREATE INDEX fanouts_modes ON fanouts (account_id) WHERE finish_time IS NULL AND kind = 'MODE';
-- Finds those to be purged.
CREATE INDEX fanouts_finished ON fanouts (finish_time) WHERE finish_time IS NOT NULL;

CREATE TABLE fanout_chunks (
    fanout_id bigint NOT NULL REFERENCES fanouts ON DELETE CASCADE,
    chunk     integer NOT NULL,
    -- Of the followers with ids above the one and up to the other; 0: to the last.
    after_id  bigint NOT NULL,
    until_id  bigint NOT NULL,
    -- How far it is, and what was done with the feeds so far.
    position  bigint NOT NULL,
    effect    text NOT NULL DEFAULT '',
    reached   bigint NOT NULL DEFAULT 0,
    done      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (fanout_id, chunk)
);

-- The topics that no worker handles until they are resumed.
CREATE TABLE paused_topics (
    topic      text PRIMARY KEY,
    pause_time timestamptz NOT NULL DEFAULT now()
);
