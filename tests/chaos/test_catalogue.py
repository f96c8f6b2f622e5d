"""The files in demo/data have the documented content, at any time of loading."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from chaos.workload import catalogue
from chaos.workload.catalogue import CINEMA, STADIUM

NOW = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_the_stadium_has_50_000_places_in_pools_that_offers_share() -> None:
    offers = catalogue.load(STADIUM, NOW)["event"]["offers"]
    assert sum(offer.get("capacity", 0) for offer in offers) == 50_000
    assert set(Counter(offer["poolId"] for offer in offers).values()) == {2}


def test_the_cinema_has_12_rows_of_20_seats_and_an_offer_for_each_kind() -> None:
    content = catalogue.load(CINEMA, NOW)
    rows = content["auditorium"]["rows"]
    assert [len(row["seats"]) for row in rows] == [20] * 12
    kinds = {seat["seatType"] for row in rows for seat in row["seats"]}
    assert {offer["seatType"] for offer in content["event"]["offers"]} == kinds


@pytest.mark.parametrize("name", [STADIUM, CINEMA])
def test_times_are_relative_to_loading(name: str) -> None:
    event = catalogue.load(name, NOW)["event"]
    assert event["saleStartTime"] == "2031-02-03T04:04:06Z"
    assert event["saleStartTime"] < event["startTime"] < event["endTime"]


@pytest.mark.parametrize("name", [STADIUM, CINEMA])
def test_there_is_demand_for_every_offer(name: str) -> None:
    content = catalogue.load(name, NOW)
    assert content["demand"].keys() == {offer["name"] for offer in content["event"]["offers"]}


def test_durations() -> None:
    assert catalogue.duration("P30DT4H") == timedelta(days=30, hours=4)
    assert catalogue.duration("-PT1M30S") == -timedelta(seconds=90)
    for wrong in ("", "P", "PT", "30D", "tomorrow"):
        with pytest.raises(ValueError, match="not a duration"):
            catalogue.duration(wrong)
