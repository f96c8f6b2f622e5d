"""A purchase limit over all offers of an event."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("per_customer_limit", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("events_per_customer_limit_check"), "events", "per_customer_limit >= 1"
    )
    op.add_column("customer_totals", sa.Column("event_limit", sa.Integer(), nullable=True))
    # Exact, since whoever adds to such a total holds the locks of all pools of the event. Who
    # owns more than a limit that was lowered keeps it, so only growth is refused.
    op.execute(
        """
        CREATE FUNCTION refuse_above_event_limit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND NEW.quantity <= OLD.quantity THEN
                RETURN NULL;
            END IF;
            IF (
                SELECT sum(totals.quantity) FROM offers
                JOIN customer_totals AS totals ON totals.event_id = offers.event_id
                 AND totals.offer_id = offers.offer_id AND totals.customer_id = NEW.customer_id
                WHERE offers.event_id = NEW.event_id
            ) > NEW.event_limit THEN
                RAISE EXCEPTION 'a customer would own more than the limit of the event'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'customer_totals_event_limit';
            END IF;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER customer_totals_event_limit AFTER INSERT OR UPDATE ON customer_totals
        FOR EACH ROW WHEN (NEW.event_limit IS NOT NULL)
        EXECUTE FUNCTION refuse_above_event_limit()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER customer_totals_event_limit ON customer_totals")
    op.execute("DROP FUNCTION refuse_above_event_limit()")
    op.drop_column("customer_totals", "event_limit")
    op.drop_constraint(op.f("events_per_customer_limit_check"), "events")
    op.drop_column("events", "per_customer_limit")
