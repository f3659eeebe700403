CREATE TRIGGER IF NOT EXISTS parking_log_no_update BEFORE UPDATE ON parking_log FOR EACH ROW
    IF NEW.body IS NOT NULL
        OR (NEW.id, NEW.at_us, NEW.action, NEW.operator, NEW.message_id, NEW.reason, NEW.whole, NEW.copies, NEW.size)
        <> (OLD.id, OLD.at_us, OLD.action, OLD.operator, OLD.message_id, OLD.reason, OLD.whole, OLD.copies, OLD.size)
    THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'parking_log is append-only: body may become NULL, nothing else changes';
    END IF
