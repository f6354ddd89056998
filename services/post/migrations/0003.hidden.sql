-- ARCHIVED: only the author sees the post, and posts_published leaves it out.
-- DELETED: what is left of a post is its row, without its caption and its media. It keeps the
-- request_id, so that a repeat of the request that made the post does not make it anew, and it
-- tells a repeat of the deletion that this is done.
ALTER TABLE posts
    DROP CONSTRAINT posts_state_check,
    -- Rows that are there obey the old one, which allowed less: looking at them all would only keep
    -- everybody waiting.
    ADD CONSTRAINT posts_state_check
        CHECK (state IN ('PROCESSING', 'PUBLISHED', 'FAILED', 'ARCHIVED', 'DELETED')) NOT VALID;
