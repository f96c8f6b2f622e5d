"""Plans are pure: a seed gives one plan, which can be written, read and restricted."""

import itertools

import pytest

from chaos.faults import plan
from chaos.faults.plan import OF_EDGES, Choice, Fault

PROCESSES = ("stock_svc", "stock_svc-1", "gateway", "postgres", "redis")
EDGES = ("gateway>stock_svc", "stock_svc>postgres")
PAIRS = plan.targets(PROCESSES, EDGES)


def test_the_same_seed_gives_the_same_plan() -> None:
    assert plan.make(7, 600, PAIRS) == plan.make(7, 600, PAIRS)
    assert plan.make(7, 600, PAIRS) != plan.make(8, 600, PAIRS)


def test_a_printed_plan_is_read_again() -> None:
    injections = plan.make(7, 600, PAIRS)
    text = "# seed 7\n\n" + "\n".join(map(str, injections))
    assert plan.parse(text) == injections


@pytest.mark.parametrize("line", ["1.0 eat redis", "soon kill redis", "1.0 kill", "1 kill redis x"])
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2: "):
        plan.parse(f"1.0 kill redis\n{line}")


def test_every_kind_occurs_before_one_occurs_twice() -> None:
    injections = plan.make(3, 3600, PAIRS)
    kinds = {fault for fault, _ in PAIRS}
    assert {injection.fault for injection in injections[: len(kinds)]} == kinds
    assert {(i.fault, i.target) for i in injections[: len(PAIRS)]} == set(PAIRS)


def test_faults_fit_their_targets() -> None:
    assert (Fault.CRASH, "postgres") in PAIRS
    assert (Fault.CRASH, "redis") not in PAIRS
    assert {target for fault, target in PAIRS if fault is Fault.CUT_COMMIT} == {EDGES[1]}
    assert {target for fault, target in PAIRS if fault in OF_EDGES} == set(EDGES)


def test_no_fault_begins_before_the_previous_one_has_ended() -> None:
    injections = plan.make(5, 3600, PAIRS)
    for before, after in itertools.pairwise(injections):
        assert before.at + before.seconds < after.at
    assert injections[-1].at + injections[-1].seconds <= 3600


def test_a_choice_restricts_the_plan() -> None:
    only = [Choice.parse("freeze:postgres:60"), Choice.parse("kill")]
    injections = plan.make(1, 600, PAIRS, only)
    assert {i.fault for i in injections} == {Fault.FREEZE, Fault.KILL}
    assert {(i.target, i.seconds) for i in injections if i.fault is Fault.FREEZE} == {
        ("postgres", 60.0)
    }
    # A plan has at least one fault, however short it is.
    assert len(plan.make(1, 10, PAIRS, only[:1])) == 1
    with pytest.raises(ValueError, match="no process"):
        plan.make(1, 60, PAIRS, [Choice.parse("kill:postgres")])
