"""The draw: a permutation that anyone can compute again, and that shows no trace of arrival."""

from uuid import UUID

import pytest

from booking_svc.queueing import draw
from booking_svc.queueing.draw import Draw
from mesh.paths import ROOT
from tools.boxoffice import draw as verifier

EVENT_ID = UUID("0197f000-0000-7000-8000-000000000006")
SECRET = bytes(range(32))
# Of docs/queueing.md.
COMMITMENT = "630dcd2966c4336691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd"
PLACES = [784, 10, 672, 147, 351, 212, 934, 835]


def test_the_test_vector_of_the_documents() -> None:
    drawn = Draw(SECRET, EVENT_ID, 1000)
    assert draw.commitment_of(SECRET).hex() == COMMITMENT
    assert [drawn.place_of(number) for number in range(8)] == PLACES
    document = (ROOT / "docs/queueing.md").read_text()
    assert COMMITMENT in document
    assert ", ".join(map(str, PLACES)) in document


@pytest.mark.parametrize("participants", [1, 2, 3, 4, 5, 7, 8, 9, 64, 65, 1000, 4096, 4097])
def test_every_number_gets_a_place_of_its_own(participants: int) -> None:
    drawn = Draw(SECRET, EVENT_ID, participants)
    places = [drawn.place_of(number) for number in range(participants)]
    assert sorted(places) == list(range(participants))
    # Later tickets stand behind, by arrival.
    assert [drawn.place_of(participants + n) for n in range(3)] == [
        participants,
        participants + 1,
        participants + 2,
    ]


def test_nobody_took_part() -> None:
    assert [Draw(SECRET, EVENT_ID, 0).place_of(number) for number in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("participants", [1, 3, 1000, 70_000])
def test_the_verifier_which_shares_no_code_finds_the_same_places(participants: int) -> None:
    drawn = Draw(SECRET, EVENT_ID, participants)
    numbers = [0, 1, participants // 2, participants - 1, participants, participants + 9]
    assert [
        verifier.place_of(number, secret=SECRET, event_id=EVENT_ID, participants=participants)
        for number in numbers
    ] == [drawn.place_of(number) for number in numbers]


def test_the_order_depends_on_the_secret_the_event_and_the_number_of_tickets() -> None:
    def order(secret: bytes, event_id: UUID, participants: int) -> tuple[int, ...]:
        drawn = Draw(secret, event_id, participants)
        return tuple(drawn.place_of(number) for number in range(500))

    other_event = UUID(int=EVENT_ID.int + 1)
    orders = {
        order(SECRET, EVENT_ID, 500),
        order(SECRET[::-1], EVENT_ID, 500),
        order(SECRET, other_event, 500),
        order(SECRET, EVENT_ID, 501),
    }
    assert len(orders) == 4


def test_a_secret_is_revealed_by_the_key_that_made_it_only() -> None:
    seed = b"s" * draw.SEED_BYTES
    secret = draw.secret_of("old key", EVENT_ID, seed)
    commitment = draw.commitment_of(secret)
    assert draw.revealed(["new key", "old key"], EVENT_ID, seed, commitment) == secret
    assert draw.revealed(["new key"], EVENT_ID, seed, commitment) is None
    assert draw.revealed(["old key"], EVENT_ID, seed[::-1] + b"x", commitment) is None


def test_all_orders_of_four_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    draws = 4800
    for n in range(draws):
        drawn = Draw(n.to_bytes(32, "big"), EVENT_ID, 4)
        order = tuple(drawn.place_of(number) for number in range(4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    expected = draws / 24
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    # 23 degrees of freedom: above 49.7 with a probability of 0.001.
    assert chi_square < 49.7
