-- Finds dead letters to purge. Contains only replayed and dropped ones.
CREATE INDEX dead_letters_settled ON dead_letters (settle_time) WHERE state <> 'OPEN';
