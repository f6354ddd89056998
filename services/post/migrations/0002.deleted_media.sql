-- Finds posts that show a media item, for example when it is deleted.
CREATE INDEX post_media_shown ON post_media (shard, media_id);
