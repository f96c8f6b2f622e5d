"""The former trigger on outbox tables, for the migrations that create and drop it.

It sent NOTIFY inside the transaction; mesh/db/notifier.py explains why that was replaced.
"""

CREATE = """
CREATE FUNCTION notify_outbox() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('outbox', ''); RETURN NULL; END $$;
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox
FOR EACH STATEMENT EXECUTE FUNCTION notify_outbox();
"""

DROP = """
DROP TRIGGER outbox_notify ON outbox;
DROP FUNCTION notify_outbox();
"""
