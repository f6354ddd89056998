-- A separate migration, because an enum value cannot be used in the transaction that adds it.
ALTER TYPE media_state ADD VALUE 'DELETED';
