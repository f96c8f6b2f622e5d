"""Words of a text and of a query, so that people find events also with a slip of the pen.

Events are found by PostgreSQL's full-text search: every word of the query begins a word
of the event. A word that begins none is replaced by the known words nearest to it, which
the trigrams of a vocabulary lead to. The database has no pg_trgm, so they are made here.
"""

import unicodedata
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import events, search_words

_MAX_WORDS = 400
_MAX_QUERY_WORDS = 10
_MAX_LENGTH = 40
# Words that share most trigrams with a slip, looked at one by one.
_CANDIDATES = 50
_REPLACEMENTS = 5
_LATIN_MARKS = range(0x300, 0x370)


def words_of(*texts: str) -> list[str]:
    """The words of some texts, each once: lower case, and Latin letters without accents."""
    found: dict[str, None] = {}
    for text in texts:
        letters = "".join(
            char
            for char in unicodedata.normalize("NFKD", text.casefold())
            if ord(char) not in _LATIN_MARKS
        )
        spaced = "".join(
            # Marks belong to the letters of many scripts.
            char if unicodedata.category(char)[0] in "LNM" else " "
            for char in unicodedata.normalize("NFC", letters)
        )
        found.update(dict.fromkeys(word[:_MAX_LENGTH] for word in spaced.split()))
    return list(found)[:_MAX_WORDS]


def vector(words: Sequence[str]) -> sa.ColumnElement[object]:
    """The value of a tsvector column. Without PostgreSQL's parser, which knows few scripts."""
    return sa.func.array_to_tsvector(sa.literal(list(words), postgresql.ARRAY(sa.Text)))


def trigrams(word: str) -> list[str]:
    """The trigrams of a word, with its beginning and its end, as pg_trgm makes them."""
    padded = f"  {word} "
    return sorted({padded[n : n + 3] for n in range(len(padded) - 2)})


async def learn(connection: AsyncConnection, *, words: Sequence[str]) -> None:
    """Adds words to the vocabulary. They stay in it when their last event goes."""
    if words:
        await connection.execute(
            postgresql.insert(search_words).on_conflict_do_nothing(),
            # Sorted: two events with the same new words must not wait for each other.
            [{"word": word, "trigrams": trigrams(word)} for word in sorted(words)],
        )


async def condition(connection: AsyncConnection, *, query: str) -> sa.ColumnElement[bool]:
    """What holds for the events that a query finds; nothing holds for no words at all."""
    wanted = words_of(query)[:_MAX_QUERY_WORDS]
    if not wanted:
        return sa.false() if query.strip() else sa.true()
    parts = []
    for word in wanted:
        meant = [word] if await _begins_one(connection, word) else await _nearest(connection, word)
        if not meant:
            return sa.false()
        parts.append("(" + " | ".join(f"'{each}':*" for each in meant) + ")")
    # Words have letters, marks and digits only: nothing of a tsquery's own signs.
    return events.c.search.op("@@")(sa.cast(" & ".join(parts), postgresql.TSQUERY))


async def _begins_one(connection: AsyncConnection, word: str) -> bool:
    # The greatest character ends the range of what begins with the word.
    found = await connection.execute(
        sa.select(sa.literal(1))
        .where(search_words.c.word >= word, search_words.c.word < word + "\U0010ffff")
        .limit(1)
    )
    return found.first() is not None


async def _nearest(connection: AsyncConnection, word: str) -> list[str]:
    """Known words within one or two slips of a word, the nearest first."""
    wanted = sa.literal(trigrams(word), postgresql.ARRAY(sa.Text))
    shared = sa.func.unnest(search_words.c.trigrams).table_valued("trigram").render_derived()
    count = (
        sa.select(sa.func.count()).select_from(shared).where(shared.c.trigram == sa.any_(wanted))
    ).scalar_subquery()
    found = await connection.scalars(
        sa.select(search_words.c.word)
        .where(search_words.c.trigrams.op("&&")(wanted))
        .where(
            sa.func.char_length(search_words.c.word).between(
                len(word) - allowed_slips(word), len(word) + allowed_slips(word)
            )
        )
        .order_by(count.desc(), search_words.c.word)
        .limit(_CANDIDATES)
    )
    return nearest(word, found)


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """Those of some words that a word may be a slip for, the nearest first."""
    distances = sorted(
        (distance, candidate)
        for candidate in candidates
        if (distance := slips(word, candidate)) <= allowed_slips(word)
    )
    return [candidate for _, candidate in distances[:_REPLACEMENTS]]


def allowed_slips(word: str) -> int:
    """How many letters may be wrong."""
    if len(word) < 3:
        return 0
    return 1 if len(word) < 6 else 2


def slips(one: str, other: str) -> int:
    """Letters changed, added, left out or swapped (Damerau–Levenshtein, adjacent swaps once)."""
    before: list[int] = []
    above = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, opposite in enumerate(other, 1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != opposite))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == opposite:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, above = above, row
    return above[-1]
