"""A notebook cell as a task: what it needs, what it gives back, and how it runs.

`Analysis` reads a cell's source in the notebook; `carrier` makes it a function whose
globals are the notebook's, so that it is pickled with just those that it needs, and
with functions that see the same ones; `run` is called by it on a worker. Knows nothing
of IPython, which a worker need not have.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import dis
import inspect
import io
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, cast

from nbsched.payload import pickling

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_ONLY_IN_NOTEBOOKS = frozenset({"display", "get_ipython", "exit", "quit"})
"""What IPython puts among the built-in names."""
_BUILT_IN = frozenset(vars(builtins)) - _ONLY_IN_NOTEBOOKS | {
    "__name__", "__doc__", "__builtins__", "__annotations__",
}  # fmt: skip
_LOADS = (
    "LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_NAME", "DELETE_GLOBAL",
)  # fmt: skip


@dataclass(frozen=True)
class CellEnd:
    """What a cell has left behind.

    Attributes:
        outputs: the values that were asked for, by name.
        value: pickle of its last expression's value; None when that is not shown.
        instead: the value's repr, when it cannot be pickled.
    """

    outputs: dict[str, Any]
    value: bytes | None = None
    instead: str = ""


# ------------------------------------------------------------ in the notebook


@dataclass
class Analysis:
    """Names that a cell uses and sets.

    Attributes:
        needed: names that it may read before it has given them a value.
        stored: names that it may give a value.
        imports_all: whether it has a ``from … import *``: it may have any name.
    """

    needed: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    imports_all: bool = False

    @classmethod
    def of(cls, source: str, filename: str) -> Analysis:
        """Raises SyntaxError."""
        found = cls()
        tree = ast.parse(source, filename)
        compile(source, filename, "exec", flags=_FLAGS, dont_inherit=True)
        found._read(tree.body, set())
        found.imports_all = any(
            isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body
        )
        found.needed -= _BUILT_IN
        return found

    def missing(self, names: Collection[str]) -> list[str]:
        """What it needs and neither the notebook nor itself provides."""
        if self.imports_all:
            return []
        return sorted(self.needed - self.stored - set(names))

    def _read(self, statements: Iterable[ast.stmt], defined: set[str]) -> None:
        """Follow the statements in order; ``defined`` grows by what certainly has a value."""
        for statement in statements:
            self._read_one(statement, defined)

    def _read_one(self, statement: ast.stmt, defined: set[str]) -> None:
        match statement:
            case ast.If():
                self._use(statement.test, defined)
                yes, no = set(defined), set(defined)
                self._read(statement.body, yes)
                self._read(statement.orelse, no)
                defined |= yes & no
            case ast.While():
                self._use(statement.test, defined)
                self._branches(defined, statement.body, statement.orelse)
            case ast.For() | ast.AsyncFor():
                self._use(statement.iter, defined)
                targets = set(self._set(statement.target))
                self._branches(defined | targets, statement.body, statement.orelse)
            case ast.With() | ast.AsyncWith():
                for item in statement.items:
                    self._use(item.context_expr, defined)
                    if item.optional_vars is not None:
                        defined |= self._set(item.optional_vars)
                self._read(statement.body, defined)
            case ast.Try():
                self._branches(defined, [*statement.body, *statement.orelse])
                for handler in statement.handlers:
                    name = {handler.name} if handler.name else set()
                    if handler.type is not None:
                        self._use(handler.type, defined)
                    self._branches(defined | name, handler.body)
                self._read(statement.finalbody, defined)
            case ast.Match():
                self._use(statement.subject, defined)
                for case in statement.cases:
                    self._read_case(case, set(defined))
            case _:
                loads, stores = _names_of(ast.Module([statement], []), "exec")
                self.needed |= loads - defined
                self.stored |= stores
                if type(statement).__name__ != "TryStar":  # how far it comes, is not certain
                    defined |= stores

    def _read_case(self, case: ast.match_case, defined: set[str]) -> None:
        for node in ast.walk(case.pattern):
            match node:
                case ast.Name(id=name):
                    self.needed |= {name} - defined
                case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                    defined.add(name)
                case ast.MatchMapping(rest=str(name)):
                    defined.add(name)
        self.stored |= defined
        if case.guard is not None:
            self._use(case.guard, defined)
        self._read(case.body, defined)

    def _branches(self, defined: set[str], *bodies: list[ast.stmt]) -> None:
        """Parts that may or may not be run."""
        for body in bodies:
            self._read(body, set(defined))

    def _use(self, expression: ast.expr, defined: set[str]) -> None:
        loads, stores = _names_of(ast.Expression(expression), "eval")
        self.needed |= loads - defined
        self.stored |= stores
        defined |= stores

    def _set(self, target: ast.expr) -> set[str]:
        names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        self.stored |= names
        return names


def _names_of(tree: ast.Module | ast.Expression, mode: str) -> tuple[set[str], set[str]]:
    """Global names that code reads and sets, its inner functions included."""
    outer = compile(tree, "<cell>", mode, flags=_FLAGS, dont_inherit=True)
    loads: set[str] = set()
    stores: set[str] = set()
    for code in _codes(outer):
        by_step: dict[str, set[str]] = {}
        for step in dis.get_instructions(code):
            by_step.setdefault(step.opname, set()).add(str(step.argval))
        own = by_step.get("STORE_NAME", set())
        read = set().union(*(by_step.get(name, set()) for name in _LOADS))
        loads |= read if code is outer else read - own  # inside, these are a class body's
        stores |= by_step.get("STORE_GLOBAL", set()) | (own if code is outer else set())
    return loads, stores


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def carrier(
    source: str, filename: str, namespace: dict[str, Any], names: Collection[str],
    outputs: tuple[str, ...], name: str,
) -> Callable[[object], CellEnd]:  # fmt: skip
    """The function that takes a cell to a worker, with the globals that it names."""
    # On one line, the magic's own: it has a frame in the cell's traceback.
    listed = "".join(f"{each}, " for each in sorted(names))
    text = (
        "def cell(__nbsched_item, *, __nbsched_run, __nbsched_text):"
        f" __nbsched_run or ({listed}); return __nbsched_run(__nbsched_text, globals())"
    )
    scratch: dict[str, Any] = {}
    exec(compile(text, filename, "exec", dont_inherit=True), scratch)
    function = FunctionType(scratch["cell"].__code__, namespace, name)
    function.__module__ = "__main__"
    function.__qualname__ = name
    function.__kwdefaults__ = {
        "__nbsched_run": run,
        "__nbsched_text": (source, filename, outputs),
    }
    return cast(Callable[[object], CellEnd], function)


# ------------------------------------------------------------ on the worker


def run(text: tuple[str, str, tuple[str, ...]], namespace: dict[str, Any]) -> CellEnd:
    """Run a cell in a namespace. Raises what it raises, and NameError for an output
    that it has not set."""
    source, filename, outputs = text
    # A retry in the same kernel finds the names as they were at first.
    before = namespace.setdefault("__nbsched_before__", dict(namespace))
    namespace.clear()
    namespace.update(before, __nbsched_before__=before)
    body, last = _compiled(source, filename)
    _execute(body, namespace)
    value = None if last is None else _execute(last, namespace)
    left = [name for name in outputs if name not in namespace]
    if left:
        raise NameError(
            f"The cell has ended without a value for {', '.join(map(repr, left))}, which --out"
            " names. Set it in every case, or leave it out of --out."
        )
    found = {name: namespace[name] for name in outputs}
    if value is None:
        return CellEnd(found)
    try:
        return CellEnd(found, pickling.dumps(value))
    except Exception:  # it is only to be looked at: its text will do
        return CellEnd(found, None, repr(value))


def _compiled(source: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """All but the last expression, and that, unless its value is not to be shown."""
    tree = ast.parse(source, filename)
    shown: CodeType | None = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not _silenced(source):
        last = ast.Expression(cast(ast.Expr, tree.body.pop()).value)
        shown = compile(last, filename, "eval", flags=_FLAGS, dont_inherit=True)
    return compile(tree, filename, "exec", flags=_FLAGS, dont_inherit=True), shown


def _silenced(source: str) -> bool:
    """Whether it ends with a semicolon, as in IPython."""
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    words = [token.string for token in tokens if token.type not in empty]
    return words[-1:] == [";"]


def _execute(code: CodeType, namespace: dict[str, Any]) -> Any:
    value = eval(code, namespace)
    return asyncio.run(value) if _awaits(code) and inspect.iscoroutine(value) else value


def _awaits(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_COROUTINE)
