-- Fan-outs to large audiences, divided into chunks that workers share. See services/fanout/store.py.

CREATE TABLE fanouts (
    fanout_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The event that began the fan-out. Unique, so that a redelivered event does not begin another.
    source      text NOT NULL UNIQUE,
    kind        text NOT NULL CHECK (kind IN ('POST', 'MODE')),
    account_id  bigint NOT NULL,
    -- The id of the post or of the mode change.
    subject_id  bigint NOT NULL,
    -- The number of followers when the fan-out began.
    followers   bigint NOT NULL,
    chunks      integer NOT NULL,
    chunks_done integer NOT NULL DEFAULT 0,
    begin_time  timestamptz NOT NULL DEFAULT now(),
    finish_time timestamptz
);

-- Contain only fan-outs in progress.
CREATE INDEX fanouts_in_flight ON fanouts (fanout_id) WHERE finish_time IS NULL;
CREATE INDEX fanouts_modes ON fanouts (account_id) WHERE finish_time IS NULL AND kind = 'MODE';
-- Finds fan-outs to purge.
CREATE INDEX fanouts_finished ON fanouts (finish_time) WHERE finish_time IS NOT NULL;

CREATE TABLE fanout_chunks (
    fanout_id bigint NOT NULL REFERENCES fanouts ON DELETE CASCADE,
    chunk     integer NOT NULL,
    -- The chunk contains the followers with ids above after_id, up to until_id; 0: to the last.
    after_id  bigint NOT NULL,
    until_id  bigint NOT NULL,
    -- The last follower processed, the effect applied up to it, and the number of followers processed.
    position  bigint NOT NULL,
    effect    text NOT NULL DEFAULT '',
    reached   bigint NOT NULL DEFAULT 0,
    done      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (fanout_id, chunk)
);

-- The topics that operators have paused: workers do not handle their events.
CREATE TABLE paused_topics (
    topic      text PRIMARY KEY,
    pause_time timestamptz NOT NULL DEFAULT now()
);
