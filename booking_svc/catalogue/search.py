"""Words of texts, and full-text search that is tolerant of typing errors.

Every word of a query must be a prefix of a word of what is found. A word that is no such prefix is
replaced by the nearest known words, found by trigrams; the database lacks pg_trgm.

Scripts such as Han, kana and Thai have no spaces between words. A run of their letters is indexed
from each letter on, four letters long, so that every part of it is a prefix of an indexed word.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import events, search_words

_MAX_WORDS = 400
_MAX_QUERY_WORDS = 10
_MAX_LENGTH = 40
# Words that share most trigrams with a misspelt one; their edit distances are computed.
_CANDIDATES = 50
_REPLACEMENTS = 5
_LATIN_MARKS = range(0x300, 0x370)
_GRAM_LENGTH = 4
_MAX_GRAMS = 2_000
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"  # Tibetan, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_RUNS = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def words_of(*texts: str) -> list[str]:
    """The distinct words of some texts, as they are indexed.

    Lower case, Latin letters without accents; of runs without spaces the parts of four letters.
    """
    words: dict[str, None] = {}
    grams: dict[str, None] = {}
    for word in _runs_of(*texts):
        if _IS_UNSPACED.match(word):
            grams.update(dict.fromkeys(_grams(word)))
        else:
            words[word[:_MAX_LENGTH]] = None
    return list(words)[:_MAX_WORDS] + list(grams)[:_MAX_GRAMS]


def _grams(run: str) -> list[str]:
    """Four letters from each letter of a run on; at its end the rest."""
    return [run[n : n + _GRAM_LENGTH] for n in range(len(run))]


def _runs_of(*texts: str) -> list[str]:
    """The distinct words of some texts, split where a script without spaces begins or ends."""
    words: dict[str, None] = {}
    for text in texts:
        letters = "".join(
            char
            for char in unicodedata.normalize("NFKD", text.casefold())
            if ord(char) not in _LATIN_MARKS
        )
        spaced = "".join(
            # In many scripts a mark is part of a letter.
            char if unicodedata.category(char)[0] in "LNM" else " "
            for char in unicodedata.normalize("NFC", letters)
        )
        words.update(dict.fromkeys(run for word in spaced.split() for run in _RUNS.findall(word)))
    return list(words)


def vector(words: Sequence[str]) -> sa.ColumnElement[object]:
    """The value of a tsvector column, without PostgreSQL's parser, which knows few scripts."""
    return sa.func.array_to_tsvector(sa.literal(list(words), postgresql.ARRAY(sa.Text)))


def trigrams(word: str) -> list[str]:
    """The trigrams of a word, padded as pg_trgm does: two blanks before, one after."""
    padded = f"  {word} "
    return sorted({padded[n : n + 3] for n in range(len(padded) - 2)})


async def learn(connection: AsyncConnection, *, words: Sequence[str]) -> None:
    """Adds known words. They remain after their last event is deleted.

    Without parts of words: no spelling is corrected in scripts without spaces.
    """
    words = [word for word in words if not _IS_UNSPACED.match(word)]
    if words:
        await connection.execute(
            postgresql.insert(search_words).on_conflict_do_nothing(),
            # Sorted, so that two events with the same new words cannot deadlock.
            [{"word": word, "trigrams": trigrams(word)} for word in sorted(words)],
        )


@dataclass(frozen=True, slots=True)
class Patterns:
    """A query as tsqueries: each of its words as a whole word, or as the beginning of a word.

    For a run of letters without spaces, whose words are not known, both find it anywhere.
    """

    words: str
    prefixes: str


async def patterns(connection: AsyncConnection, *, query: str) -> Patterns | None:
    """The patterns of a query; None if it has no words, or one that is like no known word."""
    whole, beginnings = [], []
    for word in (word[:_MAX_LENGTH] for word in _runs_of(query)[:_MAX_QUERY_WORDS]):
        if _IS_UNSPACED.match(word):
            whole.append(_contains(word))
            beginnings.append(_contains(word))
            continue
        known = [word] if await _is_prefix(connection, word) else await _nearest(connection, word)
        if not known:
            return None
        whole.append("(" + " | ".join(f"'{spelling}'" for spelling in known) + ")")
        beginnings.append("(" + " | ".join(f"'{spelling}':*" for spelling in known) + ")")
    return Patterns(" & ".join(whole), " & ".join(beginnings)) if whole else None


def matches(column: sa.ColumnElement[object], pattern: str) -> sa.ColumnElement[bool]:
    """Whether a vector matches one of the Patterns."""
    # Words consist of letters, marks and digits, none of which is tsquery syntax.
    return column.op("@@")(sa.cast(pattern, postgresql.TSQUERY))


async def condition(connection: AsyncConnection, *, query: str) -> sa.ColumnElement[bool]:
    """Matches the events of a query. An empty query matches all, one without words none."""
    if not query.strip():
        return sa.true()
    asked = await patterns(connection, query=query)
    return sa.false() if asked is None else matches(events.c.search, asked.prefixes)


def has_prefixes(column: sa.ColumnElement[object], query: str) -> sa.ColumnElement[bool]:
    """Whether a vector has, for each word of a query, a word that begins with it."""
    words = [word[:_MAX_LENGTH] for word in _runs_of(query)[:_MAX_QUERY_WORDS]]
    if not words:
        return sa.false()
    parts = [_contains(word) if _IS_UNSPACED.match(word) else f"'{word}':*" for word in words]
    return matches(column, " & ".join(parts))


def _contains(run: str) -> str:
    """Matches a run of letters without spaces anywhere in a text, by its overlapping parts.

    Or as a prefix: events that an older version wrote have whole words.
    """
    grams = [gram for gram in _grams(run) if len(gram) == _GRAM_LENGTH] or [run]
    together = " & ".join(f"'{gram}':*" for gram in grams)
    return f"('{run}':* | ({together}))"


async def _is_prefix(connection: AsyncConnection, word: str) -> bool:
    # The greatest character ends the range of words with this prefix.
    rows = await connection.execute(
        sa.select(sa.literal(1))
        .where(search_words.c.word >= word, search_words.c.word < word + "\U0010ffff")
        .limit(1)
    )
    return rows.first() is not None


async def _nearest(connection: AsyncConnection, word: str) -> list[str]:
    """Known words within the allowed edit distance of a word, nearest first."""
    word_trigrams = sa.literal(trigrams(word), postgresql.ARRAY(sa.Text))
    shared = sa.func.unnest(search_words.c.trigrams).table_valued("trigram").render_derived()
    count = (
        sa.select(sa.func.count())
        .select_from(shared)
        .where(shared.c.trigram == sa.any_(word_trigrams))
    ).scalar_subquery()
    candidates = await connection.scalars(
        sa.select(search_words.c.word)
        .where(search_words.c.trigrams.op("&&")(word_trigrams))
        .where(
            sa.func.char_length(search_words.c.word).between(
                len(word) - max_distance(word), len(word) + max_distance(word)
            )
        )
        .order_by(count.desc(), search_words.c.word)
        .limit(_CANDIDATES)
    )
    return nearest(word, candidates)


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """The candidates within the allowed edit distance of a word, nearest first."""
    distances = sorted(
        (distance, candidate)
        for candidate in candidates
        if (distance := edit_distance(word, candidate)) <= max_distance(word)
    )
    return [candidate for _, candidate in distances[:_REPLACEMENTS]]


def max_distance(word: str) -> int:
    """The greatest edit distance at which a known word replaces `word`."""
    if len(word) < 3:
        return 0
    return 1 if len(word) < 6 else 2


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, substitutions and transpositions of adjacent characters.

    Damerau–Levenshtein distance, restricted: no substring is edited twice.
    """
    before: list[int] = []
    above = list(range(len(second) + 1))
    for i, char in enumerate(first, 1):
        row = [i]
        for j, opposite in enumerate(second, 1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (char != opposite))
            if i > 1 and j > 1 and char == second[j - 2] and first[i - 2] == opposite:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, above = above, row
    return above[-1]
