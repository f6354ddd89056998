-- Counts the open uploads of an owner, which are limited (services/media/limits.py).
CREATE INDEX media_open ON media (shard, owner_id) WHERE state = 'PENDING' AND NOT aborted;
