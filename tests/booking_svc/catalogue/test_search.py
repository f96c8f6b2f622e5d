"""Words of a text, and the edit distance to misspelt words."""

import pytest

from booking_svc.catalogue import search


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Monsoon Nights: Live in Mumbai", ["monsoon", "nights", "live", "in", "mumbai"]),
        ("Beyoncé & JAY-Z", ["beyonce", "jay", "z"]),
        ("नमस्ते मुंबई", ["नमस्ते", "मुंबई"]),
        ("it's it's", ["it", "s"]),
        ("'); DROP TABLE events; --", ["drop", "table", "events"]),
        ("  ", []),
        ("AC/DC", ["ac", "dc"]),
        ("P!nk", ["p", "nk"]),
        (
            "東京事変ライブ",
            ["東京事変", "京事変ラ", "事変ライ", "変ライブ", "ライブ", "イブ", "ブ"],
        ),
        ("AKB48劇場", ["akb48", "劇場", "場"]),
        ("한국 공연", ["한국", "공연"]),
    ],
)
def test_the_words_of_a_text(text: str, words: list[str]) -> None:
    assert search.words_of(text) == words


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("coldplay", "coldplay", 0),
        ("coldpaly", "coldplay", 1),
        ("coldpla", "coldplay", 1),
        ("colddplay", "coldplay", 1),
        ("goldplay", "coldplay", 1),
        ("goldpaly", "coldplay", 2),
        ("", "abc", 3),
    ],
)
def test_the_edit_distance_counts_edits_in_both_directions(
    first: str, second: str, distance: int
) -> None:
    assert search.edit_distance(first, second) == distance
    assert search.edit_distance(second, first) == distance


def test_short_words_allow_fewer_errors() -> None:
    assert search.nearest("ab", ["ac", "ab"]) == ["ab"]
    assert search.nearest("rock", ["roxk", "raxk"]) == ["roxk"]
    assert search.nearest("coldpaly", ["coldplay", "goldplay", "ballroom"]) == [
        "coldplay",
        "goldplay",
    ]
