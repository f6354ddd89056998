-- Events carry the shard of their key's owner, the 13 bits that services/common/ids.py describes,
-- and lie in 16 buckets: `shard % 16`. Relays lock a bucket, not the whole outbox, see
-- services/common/outbox.py.
--
-- Processes of the previous release keep running: they neither read nor write the new column, whose
-- value PostgreSQL computes, also for the events that are stored already. Their relays lock the
-- whole outbox, and relays of this release share that lock with each other only, so that the two
-- never relay at the same time.
ALTER TABLE outbox
    ADD COLUMN shard smallint NOT NULL GENERATED ALWAYS AS ((key >> 10 & 8191)::smallint) STORED;

-- Answers "the oldest events of a bucket".
CREATE INDEX outbox_oldest ON outbox ((shard % 16), id);
