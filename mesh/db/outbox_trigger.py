"""The trigger that outboxes had once, for the migrations that made it and those that take it away.

It sent its NOTIFY within the transaction; see mesh/db/notifier.py for why none does now.
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
