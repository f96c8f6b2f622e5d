"""Identifiers use the terms of docs/glossary.md and the field, and none of the words replaced by them."""

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import Module, module_of, modules

REPLACED = {
    *("owed", "owe", "on_owed", "settle_first", "give_back", "give_back_payment"),
    *("Settling", "Asked", "Told", "Said", "Wish", "Wanted", "Left", "Free"),
    *("EventDesk", "Cashier", "Guard", "Courier", "Letter", "Report", "Wave", "Seal"),
    *("unexplained", "firsts", "short", "granting", "shield", "apart", "LOOK_UP"),
    *("rush", "crowd", "turn_time", "followed", "lefts", "desk", "cashier", "courier"),
    *("found", "is_it", "one", "each", "wanted", "told", "wish", "said"),
}

FOLDERS = (
    *("mesh", "auth_svc", "booking_svc", "stock_svc", "payment_svc", "limit_svc"),
    *("envoy", "launcher", "chaos", "demo", "bench", "deploy", "tools", "testing", "tests"),
)


def defined(module: Module) -> Iterator[tuple[int, str]]:
    """Every name that a module defines: modules, classes, functions, parameters, variables."""
    yield 1, module.name.rpartition(".")[2]
    for node in ast.walk(module.tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.MatchAs(name=str(name)) | ast.alias(asname=str(name)):
                yield getattr(node, "lineno", 0), name


def replaced_words(module: Module) -> list[str]:
    return [
        f"{module.path}:{line}: {name}"
        for line, name in defined(module)
        if name.strip("_") in REPLACED and "migrations/versions" not in module.path.as_posix()
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_identifiers_use_the_vocabulary(folder: str) -> None:
    assert [word for module in modules(folder) for word in replaced_words(module)] == []


@pytest.mark.parametrize(
    "source", ["for one in rows: pass", "def f(wanted): ...", "class Wish: ..."]
)
def test_a_replaced_word_is_noticed(source: str) -> None:
    assert len(replaced_words(module_of(source))) == 1
