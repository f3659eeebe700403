-- Who may use the API. No secret is here: only its hash, and the prefix that it is found by.
CREATE TABLE IF NOT EXISTS api_keys (
    prefix         CHAR(12)        CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'the middle part of the key',
    secret_hash    BINARY(32)      NOT NULL COMMENT 'SHA-256 of the last part, which has 256 random bits',
    client         CHAR(12)        CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'prefix of the first key of this client; rotation keeps it',
    name           VARCHAR(100)    NOT NULL COMMENT 'for people',
    scopes         VARCHAR(200)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'separated by spaces',
    customer_id    BINARY(16)      NULL COMMENT 'the only customer the key may see and touch',
    created_at_us  BIGINT UNSIGNED NOT NULL COMMENT 'microseconds since 1970 UTC, as are the next two',
    expires_at_us  BIGINT UNSIGNED NULL,
    revoked_at_us  BIGINT UNSIGNED NULL COMMENT 'from then on it is refused; may lie ahead',
    PRIMARY KEY (prefix)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
