-- Which posts show a media item that is deleted.
CREATE INDEX post_media_shown ON post_media (shard, media_id);
