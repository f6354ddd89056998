-- The dead letters of the topics that a service's consumers handle: a topic's log cannot give up
-- a single record, a table can. See services/common/dead_letters.py.
CREATE TABLE dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic          text NOT NULL,
    -- The record in `<topic>.dlq`. Its time, too: offsets begin anew in a broker that lost its log.
    dlq_offset     bigint NOT NULL,
    bury_time      timestamptz NOT NULL,
    -- The record that could not be handled; NULL where the dead letter does not say.
    source_partition integer,
    source_offset    bigint,
    consumer_group text NOT NULL,
    reason         text NOT NULL,
    key            bytea,
    payload        bytea NOT NULL,
    traceparent    text NOT NULL,
    state          text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'REPLAYED', 'DROPPED')),
    settle_time    timestamptz,
    -- Reading the log again adds nothing, not even what was settled.
    UNIQUE (topic, dlq_offset, bury_time)
);

CREATE INDEX dead_letters_open ON dead_letters (dead_letter_id) WHERE state = 'OPEN';
