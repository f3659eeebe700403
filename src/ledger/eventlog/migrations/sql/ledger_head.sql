-- One row: where the ledger ends, and the epoch of the writer that may append to it.
CREATE TABLE IF NOT EXISTS ledger_head (
    id        TINYINT UNSIGNED NOT NULL,
    position  BIGINT UNSIGNED  NOT NULL,
    hash      BINARY(32)       NOT NULL,
    epoch     BIGINT UNSIGNED  NOT NULL COMMENT 'raised by each writer that takes over',
    PRIMARY KEY (id),
    CONSTRAINT ledger_head_one_row CHECK (id = 1)
) ENGINE = InnoDB
