"""Checks whether a history of concurrent calls is linearizable.

The search of Wing and Gong with Lowe's cache of visited configurations: a call can be next when
it began before the first end among the remaining calls.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

StateT = TypeVar("StateT", bound=Hashable)


@dataclass(frozen=True)
class Call:
    """A call with its answer; `began` and `ended` are values of one counter."""

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
    """`step` returns the answer of a state to a call, and the state after it."""
    visited: set[tuple[frozenset[int], StateT]] = set()
    stack = [(frozenset(range(len(history))), initial)]
    while stack:
        remaining, state = stack.pop()
        if not remaining:
            return True
        if (remaining, state) in visited:
            continue
        visited.add((remaining, state))
        first_end = min(history[n].ended for n in remaining)
        for n in remaining:
            if history[n].began < first_end:
                answer, after = step(state, history[n])
                if answer == history[n].answer:
                    stack.append((remaining - {n}, after))
    return False
