-- What operators did with parked messages, written before a message leaves the parking queue.
CREATE TABLE IF NOT EXISTS parking_log (
    id          BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
    at_us       BIGINT UNSIGNED NOT NULL COMMENT 'microseconds since 1970 UTC',
    action      VARCHAR(20)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'resubmitted or discarded',
    operator    VARCHAR(320)    NOT NULL COMMENT 'user@host of the operating system',
    message_id  BINARY(32)      NOT NULL COMMENT 'SHA-256 of body',
    reason      VARCHAR(1000)   NOT NULL COMMENT 'why it was parked',
    whole       TINYINT         NOT NULL COMMENT '1: a message of the inbox; 0: one event of a group',
    copies      INT UNSIGNED    NOT NULL COMMENT 'how many times it was parked',
    size        INT UNSIGNED    NOT NULL COMMENT 'bytes of body',
    body        LONGBLOB        NULL COMMENT 'the bytes, just as they came, 16 MiB at most; NULL once they were erased',
    PRIMARY KEY (id),
    KEY parking_log_message_id (message_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
