"""Mutants of Python source: a change of one node of the syntax tree."""

from __future__ import annotations

import ast
import copy
import importlib
from collections.abc import Iterator
from types import CodeType, FunctionType

from .mutant import Mutant

__all__ = ["CONTROL", "ENTRY", "entries", "mutants", "mutated", "swap"]

#: The site of a mutant that lacks one shipped rule.
ENTRY = -1
#: The site of what is no mutant at all: the tests must not notice it.
CONTROL = -2

#: Of each operator what takes its place, one mutant each.
_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
#: What is written for readers and type checkers, or is said in a message.
_SKIPPED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "type_params"})
#: RULES loses one entry at a time: see entries.
_SKIPPED_NAMES = frozenset({"__all__", "RULES"})
_SKIPPED_CALLS = frozenset({"TypeVar", "warn"})


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module.

    Args:
        file: its path below the package; of a module of rules the tables lose one entry each and are left alone otherwise.
        source: its text.
    """
    rules = "/rules/" in file
    lines = source.splitlines()
    for site, (node, place) in enumerate(_places(ast.parse(source))):
        for edit, changed in enumerate(_changes(node, place, rules)):
            before, after = ast.unparse(node), _after(node, changed)
            yield Mutant(
                file,
                place.scope,
                node.lineno,
                node.end_lineno or node.lineno,
                _short(before),
                _short(after),
                site,
                edit,
                reload=not place.in_function,
                line=_short(lines[node.lineno - 1]),
            )


def entries(file: str) -> Iterator[Mutant]:
    """Yield the mutants of a module of rules that lack one of its entries each."""
    module = importlib.import_module(f"celery_guardrails.{file[:-3].replace('/', '.')}")
    for name in getattr(module, "RULES", ()):
        yield Mutant(file, "RULES", 1, 1, name, "(nothing)", ENTRY, 0)


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """Return the tree of the mutant; its nodes keep the lines that they had."""
    tree = ast.parse(source)
    if mutant.site == CONTROL:
        return tree
    for site, (node, place) in enumerate(_places(tree)):
        if site == mutant.site:
            changed = list(_changes(node, place, "/rules/" in mutant.file))[mutant.edit]
            new = ast.copy_location(changed if changed is not None else ast.Pass(), node)
            if place.index is None:
                setattr(place.parent, place.field, new)
            else:
                getattr(place.parent, place.field)[place.index] = new
            return ast.fix_missing_locations(tree)
    raise LookupError(mutant.name)


def swap(source: str, mutant: Mutant, functions: list[FunctionType]) -> bool:
    """Give the functions of a module the mutant's code, where they stand; say whether that could be done.

    It cannot where two functions begin in one line, or where the change takes a variable of an enclosing function away.
    """
    old, new = _codes(compile(source, "", "exec")), _codes(compile(mutated(source, mutant), functions[0].__code__.co_filename, "exec"))
    if old is None or new is None or old.keys() != new.keys():
        return False
    pairs = [(function, new[_name(function.__code__)]) for function in functions]
    if any(function.__code__.co_freevars != code.co_freevars for function, code in pairs):
        return False
    for function, code in pairs:
        function.__code__ = code
    return True


def _codes(module: CodeType) -> dict[tuple[str, int], CodeType] | None:
    found: dict[tuple[str, int], CodeType] = {}
    waiting = [module]
    while waiting:
        for constant in waiting.pop().co_consts:
            if isinstance(constant, CodeType):
                waiting.append(constant)
                if not constant.co_name.startswith("<") or constant.co_name == "<lambda>":
                    if _name(constant) in found:
                        return None
                    found[_name(constant)] = constant
    return found


def _name(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


class _Place:
    """Where a node stands."""

    def __init__(self, parent: ast.AST, field: str, index: int | None, scope: str, in_function: bool, told: bool, table: bool) -> None:
        self.parent = parent
        self.field = field
        self.index = index
        self.scope = scope
        self.in_function = in_function
        self.told = told
        self.table = table


def _places(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, _Place]]:
    """Yield every expression and statement that may be changed, in an order that is always the same."""

    def walk(parent: ast.AST, scope: str, in_function: bool, told: bool, table: bool) -> Iterator[tuple[ast.expr | ast.stmt, _Place]]:
        for field, value in ast.iter_fields(parent):
            if field in _SKIPPED_FIELDS:
                continue
            # Default arguments are computed where the function is defined.
            inside = in_function or (isinstance(parent, _FUNCTIONS) and field == "body")
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or _skipped(node):
                    continue
                if isinstance(node, (ast.expr, ast.stmt)):
                    yield node, _Place(parent, field, index, scope, inside, told, table)
                name = getattr(node, "name", "") if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) else ""
                yield from walk(
                    node,
                    ".".join(filter(None, (scope, name))),
                    inside,
                    told or isinstance(node, (ast.Raise, ast.JoinedStr)),
                    table or (isinstance(node, (ast.Assign, ast.AnnAssign)) and not inside and not isinstance(parent, ast.ClassDef)),
                )

    yield from walk(tree, "", False, False, False)


def _skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, ast.Name) and target.id in _SKIPPED_NAMES for target in targets)
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return called in _SKIPPED_CALLS
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    return isinstance(node, ast.FunctionDef) and any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def _changes(node: ast.expr | ast.stmt, place: _Place, rules: bool) -> Iterator[ast.expr | ast.stmt | None]:
    """Yield what may stand in place of a node; None stands for nothing at all."""
    if rules and not place.in_function:
        loaded = isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        if place.table and loaded and isinstance(node, (ast.Set, ast.List, ast.Tuple, ast.Dict)):
            yield from _without_each(node)
        return
    if isinstance(node, ast.expr):
        if place.field == "test" or (isinstance(place.parent, ast.comprehension) and place.field == "ifs"):
            yield from (ast.Constant(value) for value in (True, False) if not isinstance(node, ast.Constant))
        yield from _expression(node, place)
    elif place.in_function:
        yield from _statement(node)


def _without_each(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Dict):
        for index in range(len(node.keys)):
            keys, values = list(node.keys), list(node.values)
            del keys[index], values[index]
            yield ast.Dict(keys, values)
    else:
        elements = node.elts  # type: ignore[attr-defined]
        for index in range(len(elements)):
            rest = [*elements[:index], *elements[index + 1 :]]
            # an empty display of a set is one of a dict
            yield type(node)(rest) if isinstance(node, ast.Set) and rest else ast.Tuple(rest, ast.Load())


def _expression(node: ast.expr, place: _Place) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in _COMPARE[type(operator)]:
                changed = copy.copy(node)
                changed.ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield changed
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _constants(node.value, place.told))


def _constants(value: object, told: bool) -> Iterator[bool | int | float | str | bytes]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
        yield value - 1
    elif isinstance(value, str) and not told:
        yield f"XX{value}"
    elif isinstance(value, bytes):
        yield b"XX" + value


def _statement(node: ast.stmt) -> Iterator[ast.stmt | None]:
    if isinstance(node, ast.Return):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Continue):
        yield ast.Break()
        yield None
    elif isinstance(node, ast.Break):
        yield ast.Continue()
        yield None
    elif isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)):
        yield None


def _after(node: ast.AST, changed: ast.AST | None) -> str:
    if changed is None:
        return "(nothing)"
    had, has = (_elements(one) for one in (node, changed))
    if len(had) != len(has) + 1:
        return ast.unparse(changed)
    return f"without {next(each for each in had if had.count(each) > has.count(each))}"


def _elements(node: ast.AST) -> list[str]:
    found = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    return [ast.unparse(each) for each in found if each is not None]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 110 else f"{text[:70]} … {text[-35:]}"
