-- The ledger: every event ever, in the order in which the writer decided it. Nothing is ever changed here.
CREATE TABLE IF NOT EXISTS events (
    position        BIGINT UNSIGNED   NOT NULL COMMENT 'dense, from 1, assigned by the writer',
    event_id        BINARY(16)        NOT NULL COMMENT 'UUID; the dedupe key, for ever',
    stream_id       BINARY(16)        NOT NULL COMMENT 'the customer, product or order it is about',
    version         INT UNSIGNED      NOT NULL COMMENT 'count within the stream, from 1',
    type            VARCHAR(40)       CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    schema_version  SMALLINT UNSIGNED NOT NULL COMMENT 'shape of data; old shapes are upcast when read',
    cause_position  BIGINT UNSIGNED   NOT NULL COMMENT '0 for submitted events',
    occurred_at_us  BIGINT UNSIGNED   NOT NULL COMMENT 'microseconds since 1970 UTC, told by the submitter',
    recorded_at_us  BIGINT UNSIGNED   NOT NULL COMMENT 'the same, told by the writer; never falls',
    meta            BLOB              NOT NULL COMMENT 'canonical JSON: what came with the event, as its source',
    data            BLOB              NOT NULL COMMENT 'canonical JSON bytes',
    hash            BINARY(32)        NOT NULL COMMENT 'SHA-256 over the hash before and every column here',
    PRIMARY KEY (position),
    UNIQUE KEY events_event_id (event_id),
    UNIQUE KEY events_stream (stream_id, version)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
