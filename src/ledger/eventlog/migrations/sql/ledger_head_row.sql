INSERT IGNORE INTO ledger_head (id, position, hash, epoch) VALUES (1, 0, REPEAT(CHAR(0), 32), 0)
