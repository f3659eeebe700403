-- The key that each customer's name in events is sealed with. Erasure sets it to NULL: events stays, byte for byte.
CREATE TABLE IF NOT EXISTS customer_keys (
    customer_id    BINARY(16)      NOT NULL,
    sealing_key    BINARY(64)      NULL COMMENT 'AES-256-SIV; NULL once it was destroyed',
    created_at_us  BIGINT UNSIGNED NOT NULL COMMENT 'recorded time of customer.registered, microseconds since 1970 UTC',
    erased_at_us   BIGINT UNSIGNED NULL COMMENT 'that of customer.erased',
    PRIMARY KEY (customer_id)
) ENGINE = InnoDB
