"""Parts of words in scripts without spaces, for the search of events that exist."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# The scripts of booking_svc/catalogue/search.py.
_UNSPACED = (
    "[\\u0e00-\\u0fff\\u1000-\\u109f\\u1780-\\u17ff\\u3005-\\u3007\\u3040-\\u30ff\\u31f0-\\u31ff"
    "\\u3400-\\u4dbf\\u4e00-\\u9fff\\uaa60-\\uaa7f\\uf900-\\ufaff]"
)
_FILL = f"""
UPDATE events SET search = search || array_to_tsvector(ARRAY(
    SELECT DISTINCT substr(word, n, 4)
    FROM unnest(tsvector_to_array(search)) AS words (word),
        generate_series(1, length(word)) AS n
    WHERE word ~ '{_UNSPACED}'
    LIMIT 2000
))
WHERE array_to_string(tsvector_to_array(search), ' ') ~ '{_UNSPACED}';
"""


def upgrade() -> None:
    op.execute(_FILL)


def downgrade() -> None:
    # The parts match no more than the words of which they are parts.
    pass
