"""Whether a history of concurrent calls is one that could have happened one call at a time.

The search of Wing and Gong with Lowe's memory of what was tried: a call may be taken next
when no call that is still to be taken had ended before it began.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

StateT = TypeVar("StateT", bound=Hashable)


@dataclass(frozen=True)
class Call:
    """A call with its answer; `began` and `ended` are of one counter."""

    name: str
    arguments: tuple[Any, ...]
    answer: object
    began: int
    ended: int


def is_linearizable(
    history: Sequence[Call],
    initial: StateT,
    step: Callable[[StateT, Call], tuple[object, StateT]],
) -> bool:
    """`step` says what a state would answer to a call, and the state after it."""
    tried: set[tuple[frozenset[int], StateT]] = set()
    stack = [(frozenset(range(len(history))), initial)]
    while stack:
        left, state = stack.pop()
        if not left:
            return True
        if (left, state) in tried:
            continue
        tried.add((left, state))
        first_end = min(history[n].ended for n in left)
        for n in left:
            if history[n].began < first_end:
                answer, after = step(state, history[n])
                if answer == history[n].answer:
                    stack.append((left - {n}, after))
    return False
