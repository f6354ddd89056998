-- The consumer group whose dead letter is replayed; NULL: the event is for all groups. A relay of
-- the previous release ignores this column, so its replays reach all groups, as before.
ALTER TABLE outbox ADD COLUMN consumer_group text;
