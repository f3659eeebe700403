-- Saved folds. Any of them may be deleted at any time: the fold can be made again from events.
CREATE TABLE IF NOT EXISTS snapshots (
    position      BIGINT UNSIGNED NOT NULL,
    part          INT UNSIGNED    NOT NULL COMMENT 'from 0; a snapshot counts only with all its parts',
    parts         INT UNSIGNED    NOT NULL,
    fold_version  INT UNSIGNED    NOT NULL COMMENT 'the shape of body',
    hash          BINARY(32)      NOT NULL COMMENT 'that of the event at position',
    body          MEDIUMBLOB      NOT NULL,
    PRIMARY KEY (position, part)
) ENGINE = InnoDB
