"""`nbsched demo`: one function mapped over every module of the standard library.

It is an ordinary user of the cluster: it takes no other way in than the public
surface. `analyse` runs in kernels, so the top of this module imports neither
servers' clients nor the cluster. The table goes to stdout and is the same whoever
did the work; what differs from run to run (time, progress) goes to stderr.
"""

from __future__ import annotations

import ast
import io
import os
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from nbsched.client.cluster import Cluster

TOP = 15
WIDTH = 80
_NOT_COUNTED = frozenset(
    {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
)
"""Layout and comments: what is left are names, numbers, strings and operators."""
_SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "site-packages"})
_UNREADABLE = (
    MemoryError,  # what the parser raises for an expression that is nested too deep
    OSError,
    RecursionError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
)
"""What a broken file raises: the tests of the standard library hold some on purpose."""


class ModuleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is in one module. With a ``problem`` only ``module`` and ``lines`` say something."""

    module: str
    lines: int = 0
    tokens: int = 0
    functions: int = 0
    classes: int = 0
    longest: str = ""
    """Name of the function with the most lines; '' without functions."""
    longest_lines: int = 0
    problem: str = ""
    """Why the file could not be read as Python."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all modules: equal however the work was spread."""

    modules: int
    unreadable: int
    lines: int
    tokens: int
    functions: int
    classes: int
    longest: str
    """The longest function of all, ``module:name``."""
    longest_lines: int


# ------------------------------------------------------------------ the work


def modules() -> list[str]:
    """Every module file of the running Python's standard library, sorted.

    Paths are relative to it, so that a worker whose Python lies elsewhere finds the
    file too. Installed packages are left out.
    """
    root = _library()
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if name.endswith(".py")
        ]
    return sorted(found)


def analyse(path: str) -> ModuleFacts:
    """Count what is in one module file. This is the function that is mapped.

    A relative path is one of this Python's standard library. Never raises for what
    is in the file: see ``problem``.
    """
    lines = 0
    try:
        with open(os.path.join(_library(), path), "rb") as file:
            source = file.read()
        lines = len(source.splitlines())
        tokens = _count_tokens(source)
        nodes = list(_definitions(source))
    except _UNREADABLE as error:
        problem = f"{type(error).__name__}: {error}"
        return ModuleFacts(module=_module_name(path), lines=lines, problem=problem)
    functions = [node for node in nodes if not isinstance(node, ast.ClassDef)]
    longest = max(functions, key=_lines_of, default=None)
    return ModuleFacts(
        module=_module_name(path),
        lines=lines,
        tokens=tokens,
        functions=len(functions),
        classes=len(nodes) - len(functions),
        longest=longest.name if longest else "",
        longest_lines=_lines_of(longest) if longest else 0,
    )


def totals(facts: Iterable[ModuleFacts]) -> Totals:
    """Sum up. The order of the facts does not matter."""
    known = list(facts)
    longest = min(known, key=lambda f: (-f.longest_lines, f.module), default=None)
    return Totals(
        modules=len(known),
        unreadable=sum(bool(f.problem) for f in known),
        lines=sum(f.lines for f in known),
        tokens=sum(f.tokens for f in known),
        functions=sum(f.functions for f in known),
        classes=sum(f.classes for f in known),
        longest=f"{longest.module}:{longest.longest}" if longest and longest.longest else "",
        longest_lines=longest.longest_lines if longest else 0,
    )


def _library() -> str:
    return sysconfig.get_path("stdlib")


def _module_name(path: str) -> str:
    """``json/decoder.py`` as ``json.decoder``, ``json/__init__.py`` as ``json``."""
    parts = path.removesuffix(".py").split(os.sep)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def _count_tokens(source: bytes) -> int:
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    return sum(token.type not in _NOT_COUNTED for token in tokens)


def _definitions(
    source: bytes,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    with warnings.catch_warnings():
        # Old test modules hold escapes that the compiler warns of.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node


def _lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# ------------------------------------------------------------------ the table


def report(facts: Sequence[ModuleFacts]) -> str:
    """The ranked table and the totals, at most 80 columns wide."""
    ranked = sorted(facts, key=lambda f: (-f.tokens, f.module))[:TOP]
    rule = "─" * (WIDTH - 1)
    head = _row("", "module", "tokens", "lines", "functions", "classes", "longest")
    rows = [
        _row(
            str(rank),
            _shortened(f.module, 25),
            *(f"{n:,}" for n in (f.tokens, f.lines, f.functions, f.classes, f.longest_lines)),
        )
        for rank, f in enumerate(ranked, 1)
    ]
    return "\n".join([head, rule, *rows, rule, *_total_lines(totals(facts))])


def _row(rank: str, module: str, *numbers: str) -> str:
    widths = (11, 9, 11, 9, 9)
    cells = "".join(number.rjust(width) for number, width in zip(numbers, widths, strict=True))
    return f"{rank:>3}  {module:<25}{cells}"


def _total_lines(total: Totals) -> list[str]:
    numbers = (total.tokens, total.lines, total.functions, total.classes, total.longest_lines)
    sums = _row("", f"all {total.modules:,} modules", *(f"{number:,}" for number in numbers))
    lines = [sums, ""]
    if total.longest:
        name = _shortened(total.longest, WIDTH - 35)
        lines.append(f"Longest function: {name}, {total.longest_lines:,} lines")
    if total.unreadable:
        files = _counted(total.unreadable, "file")
        lines.append(f"{files} could not be read as Python, and count by their lines only")
    return lines


def _shortened(text: str, width: int) -> str:
    """The end of a name tells modules apart, so the beginning gives way."""
    return text if len(text) <= width else "…" + text[1 - width :]


# ------------------------------------------------------------------ the command


def run(serial: bool = False, as_json: bool = False, cluster: Cluster | None = None) -> Totals:
    """Do the work, print it, and return the totals.

    Runs on ``cluster`` if one is given, else on the configured cluster, else on a
    private one that ends with it; ``serial`` runs the same function by plain `map`.
    ``as_json`` prints the totals alone, as one line.

    Raises:
        SystemExit: with status 130, after Ctrl-C, when everything has ended.
    """
    paths = modules()
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"Reading {len(paths):,} modules of Python {python}", file=sys.stderr)
    started = time.monotonic()
    try:
        if serial:
            facts, where = list(map(analyse, paths)), "in this process"
        else:
            facts, where = _spread(paths, cluster)
    except KeyboardInterrupt:
        print("\nThe demo was interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    elapsed_s = time.monotonic() - started
    total = totals(facts)
    _show(msgspec.json.encode(total).decode() if as_json else report(facts))
    print(f"{total.modules:,} modules in {elapsed_s:.1f} s {where}", file=sys.stderr)
    return total


def _spread(paths: list[str], cluster: Cluster | None) -> tuple[list[ModuleFacts], str]:
    with _connected(cluster) as connected:
        facts = connected.options(name="demo").map(analyse, paths).result()
        workers = connected.workers()
    cpus = sum(worker.cpus for worker in workers)
    return facts, f"on {_counted(cpus, 'CPU')} of {_counted(len(workers), 'worker')}"


@contextmanager
def _connected(cluster: Cluster | None) -> Iterator[Cluster]:
    """The given cluster, left open, or one of our own that ends with the block."""
    if cluster is not None:
        yield cluster
        return
    import nbsched  # kernels import this module, and need none of the servers' clients
    from nbsched import settings

    fresh = nbsched.Cluster() if settings.load().connected else nbsched.LocalCluster()
    with fresh as connected:
        yield connected


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show(text: str) -> None:
    """Print, also where the terminal knows neither rules nor ellipses."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.replace("─", "-").replace("…", "~")
    print(text)
