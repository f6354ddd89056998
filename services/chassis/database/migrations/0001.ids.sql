-- Generates ids in a scheme that Instagram published, see services/chassis/database/ids.py.
CREATE SEQUENCE id_sequence CYCLE MINVALUE 0 MAXVALUE 1023;

-- The operators << and | have the same precedence in PostgreSQL, hence the parentheses.
CREATE FUNCTION next_id(shard integer) RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN ((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1767225600000) << 23
     | (shard::bigint << 10)
     | nextval('id_sequence');
