-- One row: which ledger this is. Positions mean something in one ledger alone.
CREATE TABLE IF NOT EXISTS ledger_identity (
    id         TINYINT UNSIGNED NOT NULL,
    ledger_id  BINARY(16)       NOT NULL COMMENT 'random UUID, made with the table; never changes',
    PRIMARY KEY (id),
    CONSTRAINT ledger_identity_one_row CHECK (id = 1)
) ENGINE = InnoDB
