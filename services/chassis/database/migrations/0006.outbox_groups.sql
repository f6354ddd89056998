-- The consumer group whose dead letter an event was; NULL: the event is for all groups. A relay of
-- the previous release does not publish it, so such a replay reaches all groups, as it used to.
ALTER TABLE outbox ADD COLUMN consumer_group text;
