-- Ids as Instagram published them, see services/common/ids.py.
CREATE SEQUENCE id_sequence CYCLE MINVALUE 0 MAXVALUE 1023;

-- In SQL, << and | bind equally, from left to right; hence the parentheses.
CREATE FUNCTION next_id(shard integer) RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN ((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1767225600000) << 23
     | (shard::bigint << 10)
     | nextval('id_sequence');
