-- The dead letters of the topics that a service consumes. They are in a table because single
-- records cannot be removed from a topic. See services/chassis/events/dead_letters.py.
CREATE TABLE dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic          text NOT NULL,
    -- The offset and the time of the record in `<topic>.dlq`. The time is part of the key because
    -- offsets restart if the broker loses its log.
    dlq_offset     bigint NOT NULL,
    bury_time      timestamptz NOT NULL,
    -- The record that could not be handled; NULL if unknown.
    source_partition integer,
    source_offset    bigint,
    consumer_group text NOT NULL,
    reason         text NOT NULL,
    key            bytea,
    payload        bytea NOT NULL,
    traceparent    text NOT NULL,
    state          text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'REPLAYED', 'DROPPED')),
    -- When it was replayed or dropped.
    settle_time    timestamptz,
    -- Consuming the topic again adds no row, also for dead letters that were replayed or dropped.
    UNIQUE (topic, dlq_offset, bury_time)
);

CREATE INDEX dead_letters_open ON dead_letters (dead_letter_id) WHERE state = 'OPEN';
