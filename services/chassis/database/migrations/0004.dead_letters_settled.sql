-- Finds those to be purged; holds nothing that waits for a decision.
CREATE INDEX dead_letters_settled ON dead_letters (settle_time) WHERE state <> 'OPEN';
