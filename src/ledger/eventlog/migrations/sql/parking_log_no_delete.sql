CREATE TRIGGER IF NOT EXISTS parking_log_no_delete BEFORE DELETE ON parking_log FOR EACH ROW
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'parking_log is append-only: no DELETE'
