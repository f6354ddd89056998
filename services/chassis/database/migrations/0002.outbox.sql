-- Events that are true but not yet published, see services/common/outbox.py.
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic       text NOT NULL,
    key         bigint NOT NULL,
    payload     bytea NOT NULL,
    traceparent text NOT NULL
);
