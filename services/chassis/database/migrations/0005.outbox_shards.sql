-- Stores the shard of each event's key: 13 bits, see services/chassis/database/ids.py. It assigns the
-- event to one of 16 buckets: `shard % 16`. Relays lock a bucket and not the whole outbox, see
-- services/chassis/events/outbox.py.
--
-- Processes of the previous release can keep running. They neither read nor write the new column;
-- PostgreSQL computes its value, also for existing events. Their relays lock the whole outbox.
-- Relays of this release hold the same lock in shared mode, so relays of the two releases never run
-- at the same time.
ALTER TABLE outbox
    ADD COLUMN shard smallint NOT NULL GENERATED ALWAYS AS ((key >> 10 & 8191)::smallint) STORED;

-- Finds the oldest events of a bucket.
CREATE INDEX outbox_oldest ON outbox ((shard % 16), id);
