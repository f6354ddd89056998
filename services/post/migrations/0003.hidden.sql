-- ARCHIVED: only the author sees the post, and posts_published excludes it.
-- DELETED: the row stays, without its caption and media. It keeps the request_id, so that a retry of
-- CreatePost does not create the post again, and a retry of DeletePost succeeds.
ALTER TABLE posts
    DROP CONSTRAINT posts_state_check,
    -- NOT VALID: existing rows satisfy the stricter old constraint, so checking them would only hold
    -- the lock longer.
    ADD CONSTRAINT posts_state_check
        CHECK (state IN ('PROCESSING', 'PUBLISHED', 'FAILED', 'ARCHIVED', 'DELETED')) NOT VALID;
