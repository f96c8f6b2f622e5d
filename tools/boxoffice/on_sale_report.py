"""The on-sale report with what is checked beside the service: the draw, and the ledgers of stock and
payments against the bookings."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from tools.boxoffice import draw
from tools.rest import Api, RefusedError

Json = dict[str, Any]

# The three sources are read one after the other: until nothing has changed meanwhile.
_ATTEMPTS = 5
_MOST_BINS = 10
_LEAST_IN_CELL = 5
# Of a larger draw, so many tickets are examined, evenly spread over the arrivals.
_MOST_EXAMINED = 20_000
_MOST_POINTS = 1_000


def create(api: Api, event_id: str, *, commitment: str | None = None) -> Json:
    """The report of GetOnSaleReport as `report`, with `capacity`, `fairness` and `differences`.

    `isSettled` is False while sagas run or something changes: differences are then expected.
    `commitment` is what the caller noted before the draw. Raises RefusedError.
    """
    path = f"/api/v1/events/{event_id}"
    report = api.get(f"{path}/on-sale-report")
    for _ in range(_ATTEMPTS):
        before = report
        audit = api.get(f"{path}/stock/audit")
        rows = list(api.all("/api/v1/book-rows", "rows", eventId=event_id))
        report = api.get(f"{path}/on-sale-report")
        is_settled = _compared(before) == _compared(report) and not report["openSteps"]
        if is_settled:
            break
    return {
        "report": report,
        "capacity": sum(pool["capacity"] for pool in audit["pools"]),
        "fairness": _fairness(api, report, commitment) if "visitors" in report else None,
        "isSettled": is_settled,
        "differences": list(_differences(report, audit, rows)),
    }


def problems(created: Json) -> list[str]:
    """What must not be: unexplained differences, and an order that is not that of the draw."""
    faults = list(created["differences"]) if created["isSettled"] else []
    fairness = created["fairness"]
    return [*faults, *(fairness["problems"] if fairness else ())]


def _compared(report: Json) -> tuple[Any, ...]:
    return report["pools"], report["money"], report["bookings"]


def _differences(report: Json, audit: Json, rows: Sequence[Json]) -> Iterator[str]:
    yield from (f"stock ledger: {text}" for text in audit["differences"])
    booked = {pool["poolId"]: pool for pool in report["pools"]}
    for pool in audit["pools"]:
        known = booked.get(pool["poolId"], {"offerNames": [], "sold": 0})
        name = " and ".join(known["offerNames"]) or pool["poolId"]
        if pool["sold"] != known["sold"]:
            yield (
                f"{name}: {pool['sold']} places sold in the stock ledger,"
                f" {known['sold']} in confirmed bookings"
            )
        if pool["sold"] + pool["held"] > pool["capacity"]:
            yield (
                f"{name}: {pool['sold']} places sold and {pool['held']} held of {pool['capacity']}"
            )
    money = report["money"]
    if money["rescheduled"]:
        # Payments keep the event that they were made for.
        return
    currency = money["currencyCode"]
    for field, text in (("capturedMinor", "captured"), ("refundedMinor", "refunded")):
        posted = sum(int(row[field]) for row in rows if row["currencyCode"] == currency)
        if posted != int(money[field]):
            yield (
                f"{text}: {posted} minor units of {currency} in the payment ledger,"
                f" {money[field]} in the bookings"
            )
    wrong = sum(int(row["suspenseMinor"]) for row in rows)
    if wrong:
        yield f"{wrong} minor units captured wrongly and not refunded yet"


def _fairness(api: Api, report: Json, commitment: str | None) -> Json:
    """The draw of the event, checked with the code of verify-draw."""
    event_id = report["eventId"]
    published = api.get(f"/api/v1/events/{event_id}/draw")
    if not published.get("secret"):
        return {"isDrawn": False, "commitment": published["commitment"], "problems": []}
    faults = []
    try:
        draw.verify(api, event_id, (), commitment)
    except RefusedError as refusal:
        faults.append(str(refusal))
    secret, participants = bytes.fromhex(published["secret"]), published["participants"]

    def place_of(number: int) -> int:
        return draw.place_of(
            number, secret=secret, event_id=UUID(event_id), participants=participants
        )

    faults += [
        f"ticket number {entry['number']} was admitted at place {entry['place']}, but the draw"
        f" gives it {place_of(entry['number'])}"
        for entry in report["admissions"]
        if place_of(entry["number"]) != entry["place"]
    ]
    examined = _spread(participants, _MOST_EXAMINED)
    places = [place_of(number) for number in examined]
    every = max(1, len(examined) // _MOST_POINTS)
    return {
        "isDrawn": True,
        "algorithm": published["algorithm"],
        "commitment": published["commitment"],
        "secret": published["secret"],
        "participants": participants,
        "drawTime": published["drawTime"],
        "isCommitmentNoted": commitment is not None,
        "admissionsChecked": len(report["admissions"]),
        "isValid": not faults,
        "problems": faults,
        "evenness": evenness(list(zip(examined, places, strict=True)), participants),
        "points": list(zip(examined, places, strict=True))[::every],
    }


def evenness(pairs: Sequence[tuple[int, int]], participants: int) -> Json | None:
    """Pearson's chi-square of arrival against place, in a grid of equal bins.

    Small p-values mean that the place depends on the arrival. None for too few participants.
    """
    bins = min(_MOST_BINS, math.isqrt(len(pairs) // _LEAST_IN_CELL))
    if bins < 2:
        return None
    cells = [[0] * bins for _ in range(bins)]
    for number, place in pairs:
        cells[number * bins // participants][place * bins // participants] += 1
    rows = [sum(row) for row in cells]
    columns = [sum(column) for column in zip(*cells, strict=True)]
    statistic = 0.0
    for row, in_row in zip(cells, rows, strict=True):
        for count, in_column in zip(row, columns, strict=True):
            expected = in_row * in_column / len(pairs)
            statistic += (count - expected) ** 2 / expected
    freedom = (bins - 1) ** 2
    return {
        "bins": bins,
        "chiSquare": round(statistic, 2),
        "degreesOfFreedom": freedom,
        "pValue": round(_upper_tail(statistic, freedom), 4),
    }


def _upper_tail(statistic: float, freedom: int) -> float:
    """Of the chi-square distribution, by Wilson and Hilferty's normal approximation."""
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def _spread(count: int, most: int) -> Sequence[int]:
    """The numbers below `count`, or `most` of them evenly spread."""
    if count <= most:
        return range(count)
    return [index * count // most for index in range(most)]


def refusals_by_kind(refusals: Iterable[Json]) -> dict[str, int]:
    """Refusals of bots and others, by what they were refused for."""
    kinds: dict[str, int] = {}
    for refusal in refusals:
        cause = refusal["cause"]
        kind = next((kind for prefix, kind in _KINDS if cause.startswith(prefix)), "other reasons")
        kinds[kind] = kinds.get(kind, 0) + refusal["count"]
    return kinds


_KINDS = (
    ("PROOF_", "proof of work"),
    ("CAPTCHA_", "captcha"),
    ("TICKET_", "forged or foreign ticket"),
    ("TOKEN_", "forged or foreign admission"),
    ("ADDRESS_", "limit of the address"),
    ("ALREADY_ADMITTED", "second admission"),
    ("ADMISSION_EXPIRED", "admission over"),
    ("SOLD_OUT", "sold out"),
    ("QUEUE_CLOSED", "room closed"),
)
