-- Alone: a value cannot be used in the transaction that adds it.
ALTER TYPE media_state ADD VALUE 'DELETED';
