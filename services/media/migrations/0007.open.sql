-- Open uploads by owner: each account may have so many (services/media/limits.py).
CREATE INDEX media_open ON media (shard, owner_id) WHERE state = 'PENDING' AND NOT aborted;
